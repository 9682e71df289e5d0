"""A tiny Wan in float64, a denoising run of it, and fast attention written down plainly."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel

from accel.fast_attention import FastAttention, apply
from accel.handle import TileStep
from accel.windowed import Geometry, sees
from jobs.attention_plan import AttentionPlan, Strategy
from jobs.units import Unit

LAYERS = 3
LATENT_SIZE = (3, 6, 8)
GRID = (3, 3, 4)  # tokens: patches of 2x2
WINDOW = (3, 1, 3)
CHANNELS = 2


def tiny_wan(layers: int = LAYERS) -> WanTransformer3DModel:
    """Its attention is made sharp, so that it matters who sees whom."""
    torch.manual_seed(4)
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=8,
        freq_dim=8,
        ffn_dim=16,
        num_layers=layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    with torch.no_grad():
        for block in model.blocks:
            block.attn1.norm_q.weight.mul_(3)
            block.attn1.to_v.weight.mul_(4)
            block.attn1.to_out[0].weight.mul_(4)
    return model.double().eval()


def text(branch: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(ord(branch[0]))
    return torch.randn(1, 4, 8, generator=generator, dtype=torch.float64)


def start() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(1, CHANNELS, *LATENT_SIZE, generator=generator, dtype=torch.float64)


@torch.no_grad()
def forward(model: WanTransformer3DModel, x: torch.Tensor, step: int, *branches: str):
    """One pass of these branches as one batch."""
    return model(
        hidden_states=torch.cat([x] * len(branches)),
        timestep=torch.tensor([900 - 100 * step] * len(branches)),
        encoder_hidden_states=torch.cat([text(branch) for branch in branches]),
        return_dict=False,
    )[0]


def advance(x: torch.Tensor, cond: torch.Tensor, uncond: torch.Tensor) -> torch.Tensor:
    return x - 0.3 * (uncond + 3.0 * (cond - uncond))


@dataclass
class Run:
    """What every step of a run gave: (cond, uncond), and what it left."""

    outputs: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    tiles: list[TileStep] = field(default_factory=list)


def no_move(kept: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return kept


def run_plan(
    model: WanTransformer3DModel,
    plan: AttentionPlan,
    move: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] = no_move,
    batched: bool = False,
    skipped: Collection[int] = (),
) -> Run:
    """All steps, a fresh handle for each; ``move`` carries what is kept to the next one. Where a
    step is ``skipped``, as any but the first may be if one is, the last prediction stands in."""
    may_skip = (frozenset(range(1, plan.steps)),) if skipped else ()
    run, x, carried = Run(), start(), {}
    for step in range(plan.steps):
        tile = TileStep(unit=Unit("step", 0, step=step), steps=plan.steps, carried=carried)
        handle = apply(model, FastAttention(stages=(plan,), may_skip=may_skip))
        if step in skipped:
            cond, uncond = run.outputs[-1]
            tile.kept.update(carried)
        elif batched:
            with handle.run(tile, "both"):
                uncond, cond = forward(model, x, step, "uncond", "cond").chunk(2)
        else:
            with handle.run(tile, "cond"):
                cond = forward(model, x, step, "cond")
            with handle.run(tile, "uncond"):
                uncond = forward(model, x, step, "uncond")
        handle.remove()
        x, carried = advance(x, cond, uncond), move(tile.kept)
        run.outputs.append((cond, uncond))
        run.tiles.append(tile)
    return run


# -- the slow twin: remembers everything, knows nothing of what will be read


class PlainProcessor:
    """The self-attention of one layer by the paper's words, with a mask of all pairs."""

    def __init__(self) -> None:
        self.strategy: Strategy = "full"
        self.branch = "cond"
        self.residual: dict[str, torch.Tensor] = {}
        self.output: dict[str, torch.Tensor] = {}

    def __call__(self, attn, hidden, encoder=None, mask=None, rotary=None) -> torch.Tensor:
        shares = self.strategy.endswith("+share_branches")
        if self.strategy == "share_steps":
            return self.output[self.branch]
        if shares and self.branch == "uncond":
            self.output["uncond"] = self.output["cond"]
            if self.strategy.startswith("full"):
                self.residual["uncond"] = self.residual["cond"]
            return self.output["uncond"]
        q, k, v = self._heads(attn, hidden, rotary)
        window = F.scaled_dot_product_attention(q, k, v, attn_mask=sees(Geometry(GRID, WINDOW)))
        if self.strategy.startswith("full"):
            heads = F.scaled_dot_product_attention(q, k, v)
            self.residual[self.branch] = heads - window
        else:
            heads = window + self.residual[self.branch]
        self.output[self.branch] = attn.to_out[0](heads.transpose(1, 2).flatten(2))
        return self.output[self.branch]

    @staticmethod
    def _heads(attn, hidden, rotary):
        q, k = attn.norm_q(attn.to_q(hidden)), attn.norm_k(attn.to_k(hidden))
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (q, k, attn.to_v(hidden)))
        cos, sin = rotary[0][..., 0::2], rotary[1][..., 1::2]
        turned = []
        for x in (q, k):
            a, b = x[..., 0::2], x[..., 1::2]
            turned.append(torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2))
        return [x.transpose(1, 2).to(v.dtype) for x in (*turned, v)]


@contextmanager
def plain_processors(model: WanTransformer3DModel):
    layers = [block.attn1 for block in model.blocks]
    before = [layer.processor for layer in layers]
    plain = [PlainProcessor() for _ in layers]
    for layer, processor in zip(layers, plain, strict=True):
        layer.processor = processor
    yield plain
    for layer, processor in zip(layers, before, strict=True):
        layer.processor = processor


def run_plainly(
    model: WanTransformer3DModel,
    rows: Sequence[Sequence[Strategy]],
    skipped: Collection[int] = (),
) -> Run:
    run, x = Run(), start()
    with plain_processors(model) as processors:
        for step, row in enumerate(rows):
            found = list(run.outputs[-1]) if step in skipped else []
            for branch in ("cond", "uncond") if not found else ():
                for processor, strategy in zip(processors, row, strict=True):
                    processor.strategy, processor.branch = strategy, branch
                found.append(forward(model, x, step, branch))
            x = advance(x, *found)
            run.outputs.append((found[0], found[1]))
    return run
