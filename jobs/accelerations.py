"""What makes a render faster or smaller, and its settings. Plain data.

A part that is None is off. ``jobs.presets`` has named choices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from jobs.attention_plan import AttentionPlan
from jobs.spec_part import FilePath, Part

#: Latents before a step's own that the third-order difference looks back at.
LOOKS_BACK = 3


#: By form: with these small models of six families save 16 to 63 % of their operations, at 37 dB
#: on the mean or more, but for AnimateDiff's with ``scalar`` (30), which saves nothing of SVD's
#: (``benchmarks/techniques.py``). A threshold carries over from one model to another in part only.
USUAL_THRESHOLDS = {"tensor": 0.1, "scalar": 0.02, "spectral": 0.15}


class Adaptive(Part):
    """Skips model calls where the latents change evenly (AdaptiveDiffusion, arXiv 2410.09873): the
    tile's last prediction stands in, and the scheduler steps as ever.

    ``tensor`` is the paper's criterion: the norm of the latents' third-order difference against
    ``threshold`` times that of their last but one change. ``scalar`` is that of its released code:
    the same difference taken of the changes' mean sizes, and halved. Where a scheduler adds noise,
    the noise's scale has to change as evenly, and what stands in is the last prediction of the
    clean film. ``spectral`` is SeaCache's (arXiv 2602.18993): how much the clean part of the
    latents has changed since the model last ran. A threshold means something else in each: where
    none is given it is that of ``USUAL_THRESHOLDS``.
    ``forecast`` takes what lies on the line through the last two predictions in place of the last
    one. Neither of these two is for schedulers that add noise.
    """

    threshold: Annotated[float, Field(gt=0, le=100)] = USUAL_THRESHOLDS["tensor"]
    most_skips: Annotated[int, Field(ge=1, le=1000)] = 4  # one after the other
    form: Literal["tensor", "scalar", "spectral"] = "tensor"
    first: Annotated[int, Field(ge=1, le=1000)] = LOOKS_BACK  # steps that always run
    last: Annotated[int, Field(ge=0, le=1000)] = 1
    forecast: bool = False

    @model_validator(mode="before")
    @classmethod
    def _with_threshold(cls, given: Any) -> Any:
        form = given.get("form", "tensor") if isinstance(given, dict) else None
        if form not in USUAL_THRESHOLDS or "threshold" in given:
            return given
        return {**given, "threshold": USUAL_THRESHOLDS[form]}

    @model_validator(mode="after")
    def _can_look_back(self) -> Adaptive:
        if self.form != "spectral" and self.first < LOOKS_BACK:
            raise ValueError(
                f"form {self.form} looks {LOOKS_BACK} steps back: give first: {LOOKS_BACK} or more"
            )
        return self

    @property
    def kept_latents(self) -> int:
        """How many tensors of the latents' size go with a tile for it."""
        return (0 if self.form == "spectral" else LOOKS_BACK - 1) + (2 if self.forecast else 0)

    def may_skip(self, steps: int) -> range:
        """The steps of a stage of so many that may be skipped."""
        return range(self.first, max(self.first, steps - self.last))


KeySteps = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, min_length=1)]


#: A transformer's first block runs at every step, and rehash needs a first and a last of the rest.
REHASHED_BLOCKS = 3


class Rehash(Part):
    """Reuses a key step's deep features in the steps after it (Streamlined Inference, arXiv
    2411.01171). Key steps are those of each stage, coarsest first; or every so many steps, after
    the ``first`` ones of each stage (None: a tenth of its steps), in which features change most;
    or planning finds them: by the profile that ``longtake calibrate --rehash`` made, steps whose
    features are less like those of the key step before than ``threshold``. ``profiles`` is the
    folder that it wrote to, None the usual one."""

    key_steps: Annotated[tuple[KeySteps, ...], Field(strict=False, min_length=1)] | None = None
    every: Annotated[int, Field(ge=2, le=1000)] | None = None
    first: Annotated[int, Field(ge=1, le=1000)] | None = None
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    profiles: FilePath | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Rehash:
        asked = (self.key_steps or self.threshold, self.every)  # planning puts key steps beside it
        given = sum(each is not None for each in asked)
        if given != 1:
            which = "only one" if given else "one"
            raise ValueError(f"needs {which} of key_steps, every and threshold")
        if self.profiles is not None and self.threshold is None:
            raise ValueError("profiles is for a threshold; give one, or remove profiles")
        if self.first is not None and self.every is None:
            raise ValueError("first is for every; give that, or remove first")
        return self

    def keys(self, stage: int, steps: int) -> frozenset[int]:
        """The key steps of a stage of so many steps. Its first and last are always."""
        if self.every is not None:
            first = min(self.first or math.ceil(steps / 10), steps)
            return frozenset({*range(first), *range(first - 1, steps, self.every), steps - 1})
        assert self.key_steps is not None, "planning has found them"
        return frozenset({0, *self.key_steps[stage], steps - 1})


class Slicing(Part):
    """Runs groups of operators slice by slice (Streamlined Inference's feature slicer): the same
    result, but for rounding, in less memory. ``slices`` is for the widest of them; or planning
    finds the fewest with which weights and a tile take at most ``budget_gb`` (10^9 bytes)."""

    slices: Annotated[int, Field(ge=2, le=1024)] | None = None
    budget_gb: Annotated[float, Field(gt=0, le=100_000)] | None = None

    @model_validator(mode="after")
    def _something(self) -> Slicing:
        if self.slices is None and self.budget_gb is None:
            raise ValueError("needs slices or budget_gb")
        return self


def _as_plans(value: Any) -> Any:
    """As JSON has them."""
    return tuple(map(_as_plan, value)) if isinstance(value, list | tuple) else value


def _as_plan(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() == {"rows", "window"}:
        return AttentionPlan(tuple(map(tuple, value["rows"])), tuple(value["window"]))
    return value


class FastAttention(Part):
    """Windowed and shared self-attention (DiTFastAttn, arXiv 2406.08552), by plans that
    ``longtake calibrate`` found. ``plans`` is the folder that it wrote to, None the usual one. A
    job that is planned holds the plan of each stage itself, coarsest first."""

    plans: FilePath | None = None
    stages: Annotated[tuple[AttentionPlan, ...] | None, BeforeValidator(_as_plans)] = None


class Accelerations(Part):
    """All techniques with their settings. Nothing set: every step runs in full."""

    slicing: Slicing | None = None
    adaptive: Adaptive | None = None
    rehash: Rehash | None = None
    fast_attention: FastAttention | None = None

    def may_skip(self, stage_steps: Sequence[int]) -> tuple[frozenset[int], ...]:
        """The steps of each stage where the model, or most of its layers, may not be called."""
        reusing = self.reusing(stage_steps)
        if self.adaptive is None:
            return reusing
        may = (self.adaptive.may_skip(steps) for steps in stage_steps)
        return tuple(reused.union(skipped) for reused, skipped in zip(reusing, may, strict=True))

    def reusing(self, stage_steps: Sequence[int]) -> tuple[frozenset[int], ...]:
        """The steps of each stage that reuse a key step's features."""
        if self.rehash is None:
            return tuple(frozenset() for _ in stage_steps)
        keys = [self.rehash.keys(stage, steps) for stage, steps in enumerate(stage_steps)]
        each = zip(stage_steps, keys, strict=True)
        return tuple(frozenset(range(steps)) - found for steps, found in each)

    def recipe(self) -> dict[str, Any]:
        """What a result's bits depend on: the settings of all that is on."""
        asked = {
            "fast_attention": {"plans"},
            "rehash": {"threshold", "profiles"},
            "slicing": {"budget_gb"},
        }
        return self.model_dump(mode="json", exclude_none=True, exclude=asked)
