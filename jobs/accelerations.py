"""What makes a render faster or smaller, and its settings. Plain data.

A part that is None is off. ``jobs.presets`` has named choices.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from jobs.spec_part import Part


def _refuse(value: dict[str, Any] | None) -> None:
    if value is not None:
        raise ValueError("not built yet; remove it")


NotBuilt = Annotated[dict[str, Any] | None, AfterValidator(_refuse)]

#: Latents before a step's own that the third-order difference looks back at.
LOOKS_BACK = 3


class Adaptive(Part):
    """Skips model calls where the latents change evenly (AdaptiveDiffusion, arXiv 2410.09873): the
    tile's last prediction stands in, and the scheduler steps as ever.

    ``tensor`` is the paper's criterion: the norm of the latents' third-order difference against
    ``threshold`` times that of their last but one change. ``scalar`` is that of its released code:
    the same difference taken of the changes' mean sizes, and halved; a threshold means something
    else there.
    """

    threshold: Annotated[float, Field(gt=0, le=100)] = 0.01
    most_skips: Annotated[int, Field(ge=1, le=1000)] = 4  # one after the other
    form: Literal["tensor", "scalar"] = "tensor"
    first: Annotated[int, Field(ge=LOOKS_BACK, le=1000)] = LOOKS_BACK  # steps that always run
    last: Annotated[int, Field(ge=0, le=1000)] = 1


KeySteps = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, min_length=1)]


class Rehash(Part):
    """Reuses a key step's deep features in the steps after it (Streamlined Inference, arXiv
    2411.01171). Key steps are those of each stage, coarsest first, or every so many steps."""

    key_steps: Annotated[tuple[KeySteps, ...], Field(strict=False, min_length=1)] | None = None
    every: Annotated[int, Field(ge=2, le=1000)] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Rehash:
        if (self.key_steps is None) == (self.every is None):
            raise ValueError("needs key_steps or every, and not both")
        return self

    def keys(self, stage: int, steps: int) -> frozenset[int]:
        """The key steps of a stage of so many steps. Its first and last are always."""
        if self.every is not None:
            return frozenset({*range(0, steps, self.every), steps - 1})
        assert self.key_steps is not None
        return frozenset({0, *self.key_steps[stage], steps - 1})


class Accelerations(Part):
    """All techniques with their settings. Nothing set: every step runs in full."""

    slicing: NotBuilt = None
    adaptive: Adaptive | None = None
    rehash: Rehash | None = None
    fast_attention: NotBuilt = None

    def recipe(self) -> dict[str, Any]:
        """What a result's bits depend on: the settings of all that is on."""
        return self.model_dump(mode="json", exclude_none=True)
