"""DiTFastAttn (arXiv 2406.08552): self-attention that is windowed, or shared over steps and
guidance branches, as a plan says for each layer and step (``jobs.attention_plan``).

Window attention with residual sharing: a full step r keeps R = full - window, a later step k gives
window_k + R. The residual is that of the heads, before the output projection; text of a joint
attention is never windowed, so that it has none. What is shared is an attention's output, after the
projection.

Unlike the authors' code: a window is a box of the video's grid, not a run of tokens in raster
order, and a residual that both branches share is kept once. A model without a plan's windows and
shares, all ``full``, computes bit for bit as it does alone.

The layers' own code runs unchanged: only torch's ``scaled_dot_product_attention`` in them is
replaced, where a plan asks for it. A sliced block's attention is computed of all tokens where a
plan changes it or keeps something of it, and is left to the slices elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch

from accel.attention_core import Core, Residual, Windowed, second_half
from accel.handle import Branch, LostState, TileStep
from accel.video_transformers import VideoTransformer, check_layers, video_transformer
from accel.windowed import Geometry
from accel.wrapping import LeftToSlices, Wrapped
from jobs.attention_plan import (
    FINDS,
    NONE_SKIPPED,
    AttentionPlan,
    Extent,
    Kind,
    Owner,
    Steps,
    is_windowed,
    shares_branches,
)
from jobs.errors import CannotRunHere

NAME = "fast_attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class FastAttention:
    """A plan for each stage of a pyramid, coarsest first; a single one is no pyramid. ``may_skip``:
    the steps of each stage that another technique may leave out, none if it is empty; ``reusing``:
    those of them where that may be of layers alone, the last ones."""

    stages: tuple[AttentionPlan, ...]
    may_skip: tuple[Steps, ...] = ()
    reusing: tuple[Steps, ...] = ()


def apply(model: torch.nn.Module, config: FastAttention) -> FastAttentionHandle:
    """Attach to a model. Raises CannotRunHere where the plans do not fit its layers."""
    kind = video_transformer(model)
    layers = kind.layers(model)
    check_layers(layers)
    for stage, plan in enumerate(config.stages):
        if plan.layers != len(layers):
            raise CannotRunHere(
                f"the attention plan of stage {stage} has {plan.layers} layers, this "
                f"{type(model).__name__} has {len(layers)}: search a plan for this model"
            )
    return FastAttentionHandle(model, kind, config)


class FastAttentionHandle:
    """Fast attention in one model. The model runs inside ``run`` alone."""

    def __init__(
        self, model: torch.nn.Module, kind: VideoTransformer, config: FastAttention
    ) -> None:
        self._kind, self._stages, self._config = kind, config.stages, config
        self._pass: _Pass | None = None
        self._undo: list[Callable[[], None]] = []
        for number, layer in enumerate(kind.layers(model)):
            self._undo.append(Wrapped(layer, partial(self._around, number)).remove)
        hook = model.register_forward_pre_hook(self._enter_model, with_kwargs=True)
        self._undo.append(hook.remove)

    @contextmanager
    def run(self, tile: TileStep, branch: Branch) -> Iterator[None]:
        assert self._pass is None, "one pass at a time"
        plan, stage = self._plan(tile), tile.unit.stage
        given = self._config.may_skip, self._config.reusing
        may_skip, reusing = (each[stage] if each else NONE_SKIPPED for each in given)
        in_part = tile.unit.step in reusing
        self._pass = _Pass(plan, tile, branch, self._kind, may_skip, in_part)
        try:
            yield
            self._pass.finish()
        finally:
            self._pass = None

    def remove(self) -> None:
        while self._undo:
            self._undo.pop()()

    def _plan(self, tile: TileStep) -> AttentionPlan:
        stage, stages = tile.unit.stage, self._stages
        if stage >= len(stages):
            raise CannotRunHere(f"{tile.unit}: there are attention plans for {len(stages)} stages")
        if stages[stage].steps != tile.steps:
            raise CannotRunHere(
                f"{tile.unit}: the attention plan has {stages[stage].steps} steps, the job "
                f"{tile.steps}: search a plan for so many steps"
            )
        return stages[stage]

    def _enter_model(self, model: Any, args: tuple[Any, ...], given: Mapping[str, Any]) -> None:
        self._current().grid = self._kind.grid_of(model, args, given)

    def _around(self, number: int, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        current = self._current()
        if isinstance(plain, LeftToSlices) and not current.leaves_alone(number):
            plain = plain.whole
        return current.attend(number, partial(plain, *args, **kwargs))

    def _current(self) -> _Pass:
        if self._pass is None:  # a model that computes in full without a word is worse than none
            raise CannotRunHere("fast attention is attached, and the model runs outside a tile")
        return self._pass


class _Pass:
    """One pass of a tile and branch through the model."""

    def __init__(
        self,
        plan: AttentionPlan,
        tile: TileStep,
        branch: Branch,
        kind: VideoTransformer,
        may_skip: Steps,
        in_part: bool,
    ) -> None:
        self.grid: Extent | None = None
        self._plan, self._tile, self._branch, self._kind = plan, tile, branch, kind
        self._step, self._in_part = tile.unit.step, in_part
        # What both branches share, the conditional one leaves and hands on.
        mine = [owner for owner in FINDS[branch] if (branch, owner) != ("uncond", "shared")]
        self._kept = {key for key in plan.kept_after(self._step, may_skip) if key[2] in mine}
        self._reached: list[int] = []

    def leaves_alone(self, layer: int) -> bool:
        """Whether the layer computes as it does without a plan, and nothing of it is kept."""
        full = self._plan.rows[self._step][layer] == "full"
        return full and not any(self._leaves(kind, layer) for kind in get_args(Kind))

    def attend(self, layer: int, plain: partial[Any]) -> Any:
        """What the layer gives, as the plan says; ``plain`` computes it in full."""
        self._reached.append(layer)
        self._tile.engaged[f"{NAME}.layers"] += 1
        if self.leaves_alone(layer):
            given = plain()
            if given is not None:  # else its block goes through it slice by slice
                self._check(layer, _as_tuple(given))
            return given
        strategy = self._plan.rows[self._step][layer]
        shares = shares_branches(strategy)
        if strategy == "share_steps":
            self._count("share_steps")
            outputs = self._read("output", layer)
        elif shares and self._branch == "uncond":
            self._count("share_branches")
            outputs = self._from_cond(layer)
        else:
            outputs = self._compute(layer, plain)
            if shares and self._branch == "cond":
                self._tile.shared.update(self._named("output", layer, "cond", outputs))
        if strategy != "share_steps":
            self._leave("output", layer, outputs)
        return outputs if self._kind.outputs > 1 else outputs[0]

    def finish(self) -> None:
        """Hand on what later steps read and this one has not renewed."""
        layers = self._plan.layers
        fewest = 1 if self._in_part else layers
        if len(self._reached) < fewest or self._reached != list(range(len(self._reached))):
            raise CannotRunHere(
                f"{self._tile.unit}: of {layers} layers with fast attention the model called "
                f"{self._reached}; each is to be called once, in order"
                f"{', or the first ones alone' if self._in_part else ''}"
            )
        for kind, layer in {key[:2] for key in self._kept}:
            if layer in self._reached and self._plan.writes(kind, self._step, layer):
                continue
            owner = self._found(kind, layer)
            if (kind, layer, owner) in self._kept:
                names = self._names(kind, layer, owner)
                self._tile.kept.update({name: self._tile.carried[name] for name in names})

    # -- computing

    def _compute(self, layer: int, plain: partial[Any]) -> tuple[torch.Tensor, ...]:
        half = self._branch == "both" and shares_branches(self._plan.rows[self._step][layer])
        if half:
            self._count("share_branches")
            plain = second_half(plain)
        core = self._core(layer)
        with core or nullcontext():
            outputs = _as_tuple(plain())
        self._check(layer, outputs, core)
        if isinstance(core, Residual):
            self._leave("residual", layer, (core.residual,))
        return tuple(torch.cat([x, x]) for x in outputs) if half else outputs

    def _check(
        self, layer: int, outputs: tuple[torch.Tensor, ...], core: Core | None = None
    ) -> None:
        where, known = f"{self._tile.unit}, layer {layer}: its attention", self._kind.outputs
        if len(outputs) != known:
            raise CannotRunHere(
                f"{where} gave {len(outputs)} tensors, and fast attention knows {known}; remove "
                "what else changes it"
            )
        if core and core.calls != 1:
            raise CannotRunHere(
                f"{where} did not go through torch's scaled_dot_product_attention once; set the "
                "attention backend 'native'"
            )

    def _core(self, layer: int) -> Core | None:
        """What stands in for the attention between all tokens; None if nothing is to."""
        if is_windowed(self._plan.rows[self._step][layer]):
            self._count("window")
            return Windowed(self.geometry, self._read("residual", layer)[0])
        return Residual(self.geometry) if self._leaves("residual", layer) else None

    def geometry(self, tokens: int) -> Geometry:
        """Of a layer that attends over so many tokens."""
        assert self.grid is not None, "the model's forward comes before its layers'"
        frames, rows, columns = self.grid
        text = tokens - frames * rows * columns
        if text < 0 or (text > 0) != (self._kind.text != "none"):
            raise CannotRunHere(
                f"{self._tile.unit}: attention over {tokens} tokens does not fit a grid of "
                f"{self.grid}; text is to come {self._kind.text}"
            )
        return Geometry(self.grid, self._plan.window, text, self._kind.text == "first")

    # -- what is remembered

    def _leaves(self, kind: Kind, layer: int) -> bool:
        """Whether a later step may read what this pass computes."""
        owner = self._plan.owner(self._step, layer, self._branch)
        return (kind, layer, owner) in self._kept

    def _leave(self, kind: Kind, layer: int, tensors: tuple[torch.Tensor, ...]) -> None:
        if self._leaves(kind, layer):
            owner = self._plan.owner(self._step, layer, self._branch)
            self._tile.kept.update(self._named(kind, layer, owner, tensors))

    def _read(self, kind: Kind, layer: int) -> tuple[torch.Tensor, ...]:
        names = self._names(kind, layer, self._found(kind, layer))
        return tuple(self._tile.carried[name] for name in names)

    def _found(self, kind: Kind, layer: int) -> Owner:
        """Under whose name the newest lies, of the last step that ran and made one: whether that
        step shared its branches, only the tile knows where steps may be skipped."""
        for owner in FINDS[self._branch]:
            if self._tile.carried.keys() >= set(self._names(kind, layer, owner)):
                return owner
        name = f"{NAME}.{self._branch}.{kind}.{layer}"
        raise LostState(
            f"{self._tile.unit} came without '{name}', which its attention plan reads: the step "
            "before ran by another plan"
        )

    def _from_cond(self, layer: int) -> tuple[torch.Tensor, ...]:
        names = self._names("output", layer, "cond")
        if not self._tile.shared.keys() >= set(names):
            raise CannotRunHere(
                f"{self._tile.unit}, layer {layer}: the conditional branch of this step is to run "
                "before the unconditional one, which shares its attention"
            )
        return tuple(self._tile.shared.pop(name) for name in names)

    def _named(
        self, kind: Kind, layer: int, owner: Owner, tensors: tuple[torch.Tensor, ...]
    ) -> dict[str, torch.Tensor]:
        return dict(zip(self._names(kind, layer, owner), tensors, strict=True))

    def _names(self, kind: Kind, layer: int, owner: Owner) -> list[str]:
        parts = self._kind.outputs if kind == "output" else 1
        return [f"{NAME}.{owner}.{kind}.{layer}.{part}" for part in range(parts)]

    def _count(self, what: str) -> None:
        self._tile.engaged[f"{NAME}.{what}"] += 1


def _as_tuple(given: Any) -> tuple[torch.Tensor, ...]:
    return given if isinstance(given, tuple) else (given,)
