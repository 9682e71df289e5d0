"""The units of work of a render, and the tasks that workers receive for them.

A unit is a pure function of its inputs: whoever computes it, however often, gets the same
arrays. Three kinds exist:

``encode``  the embeddings of what a shot starts from: its prompts, or its image
``step``    one denoising step of a tile. The unit of step *s* first settles step *s - 1*: it
            blends the predictions of all tiles that cover its window and lets the scheduler
            step the range. Then, unless *s* is the stage's last, the model predicts.
            So the unit of the last step yields the stage's finished latents and calls no model.
``decode``  pixel frames of a piece of a shot, encoded as a playable video segment
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from jobs.images import ImageFile

UnitKind = Literal["encode", "step", "decode"]


@dataclass(frozen=True, slots=True, order=True)
class Unit:
    """Names one unit of work. ``index`` is the window of a step, or the piece of a decode."""

    kind: UnitKind
    shot: int
    stage: int = 0
    index: int = 0
    region: int = 0
    step: int = 0

    def __str__(self) -> str:
        if self.kind == "encode":
            return f"shot {self.shot + 1} prompts"
        if self.kind == "decode":
            return f"shot {self.shot + 1} piece {self.index + 1}"
        stage = f" stage {self.stage + 1}" if self.stage else ""
        return f"shot {self.shot + 1}{stage} window {self.index + 1} step {self.step}"


@dataclass(frozen=True, slots=True)
class Window:
    """A run of latent frames ``[start, stop)`` of a shot's stage."""

    index: int
    start: int
    stop: int

    @property
    def latent_frames(self) -> int:
        return self.stop - self.start

    def overlaps(self, other: Window) -> bool:
        return self.start < other.stop and other.start < self.stop


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatedNoise:
    """Part of the noise that a shot starts from comes again after each window's length, so that all
    windows decide alike (FreeNoise, Qiu et al. 2023, arXiv 2310.15169, repeats all, shuffled)."""

    period: int  # in frames of the first stage
    share: float  # of the variance; 0 to 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ShotRender:
    """All that a worker must know of a shot to compute any of its units."""

    prompt: str
    negative_prompt: str
    seed: int
    guidance: tuple[float, ...]  # one per expert; 1.0 or less switches guidance off
    stage_steps: tuple[int, ...]  # of each stage, coarsest first; a single one is no pyramid
    stage_positions: bool  # whether rotary positions count the shot's latent frames, not a stage's
    scheduler: str  # "auto" (as the model folder says), or one that the family supports
    flow_shift: float | None  # None: as the model folder says
    text_tokens: int  # prompt embeddings are padded to this many tokens
    latent_frames: int  # of the whole shot
    latent_height: int
    latent_width: int
    pixel_frames: int  # of the whole shot, after trimming
    fps: int
    image: ImageFile | None = None  # what the shot starts from
    repeated_noise: RepeatedNoise | None = None

    @property
    def steps(self) -> int:
        """Denoising steps of all stages."""
        return sum(self.stage_steps)

    @property
    def shows(self) -> str:
        """What a person knows the shot by: its prompt, or else its image."""
        return self.prompt or (self.image.path if self.image else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeTask:
    """Encode what a shot starts from. Inputs: none. Output arrays: as its family names them, such
    as ``cond`` and, with guidance, ``uncond``, each [1, text_tokens, text_dim]; of a model that
    must know which tokens are padding, ``<name>.mask`` [1, text_tokens] too."""

    unit: Unit
    attempt: int
    shot: ShotRender


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTask:
    """Advance a tile by one step.

    Inputs, in this order: the shot's embeddings (unless the step is the stage's last), then, if
    ``unit.step > 0``, the previous step's outputs of every window in ``covering``, in order; or,
    for the first step of a later stage, the finished latents of ``parents``, in order.
    ``covering`` holds all windows of the stage that overlap ``window``, itself included, by
    rising index. ``parents`` are the windows of the stage before that stand for ``window``, and
    ``owned`` the half-open ranges of that stage's frames that each of them contributes.

    Output arrays (latent range of the window): ``latents`` [1, C, T, H, W], ``prediction`` of
    the same shape, the scheduler's history ``history.<name>``, and what the accelerations keep
    with the tile, ``accel.<name>``. The last step yields ``latents`` only.
    """

    unit: Unit
    attempt: int
    shot: ShotRender
    window: Window
    covering: tuple[Window, ...]
    parents: tuple[Window, ...] = ()
    owned: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeTask:
    """Decode latent frames ``[start, stop)`` of a shot into a playable segment.

    Inputs: the finished latents of ``windows``, in order; they cover ``[warm_start, stop)`` and
    what a decoder that is not causal sees of the frames after. ``owned`` gives the half-open latent
    range that each of them contributes. A worker that
    holds the shot's live decoder context at ``start`` goes on from it; any other warms up from
    ``warm_start``. Both give the same bits.

    Output: bytes of the segment, and the sha256 of every RGB frame.
    """

    unit: Unit
    attempt: int
    shot: ShotRender
    start: int
    stop: int
    warm_start: int
    windows: tuple[Window, ...]
    owned: tuple[tuple[int, int], ...]
    codec: str
    quality: int


Task = EncodeTask | StepTask | DecodeTask

#: Bytes of features. So much that accelerations keep with a tile is kept for its next step and no
#: longer. Less than that is not worth going back for, when that step must be computed again.
MUCH_MEMORY = 2**20


@dataclass(frozen=True, slots=True)
class Stayed:
    """Names what accelerations keep with a tile after a step, where it is on a worker's shelf."""

    unit: Unit
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReport:
    """What a worker says of a finished unit, beside its output."""

    unit: Unit
    attempt: int
    worker: str
    elapsed_s: float  # wall time until the device had finished
    output_bytes: int
    numerics: str  # digest of the worker's numerics class
    remembers: bool = False  # MUCH_MEMORY or more of the output is for its tile's next step alone
    stays: bool = False  # and that is not with the output, but on the worker's shelf
    engaged: Mapping[str, int] = field(default_factory=dict)  # what accelerations did, counted
    deeper: int | None = None  # memory ran out: the worker goes on in so many slices
    on_processor: bool = False  # the device had no room for the encoders, loaded just now
