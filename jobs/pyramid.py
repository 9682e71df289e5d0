"""The frames and steps of a temporal pyramid: whole numbers that planner and workers share.

Stage 0 is the coarsest one; each stage after it has twice the frame rate, and the last one has
all latent frames of the shot. ``stride`` is how many latent frames of the shot a stage's frame
stands for: 2 to the power of the stages that come after it.

The one rule for frames that have no partner: **frames pair up from the start, but the first
latent frame of a causal autoencoder stays alone** (it holds a single picture where all others hold
several, and a film's beginning should not be mixed with what follows). A last frame without
partner stays alone too. A frame that is alone is passed on as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

#: With more stages, a frame of the first one would stand for more than eight latent frames.
MOST_STAGES = 4


def stage_strides(stages: int) -> tuple[int, ...]:
    """The stride of every stage, coarsest first: (4, 2, 1) for three."""
    if not 1 <= stages <= MOST_STAGES:
        raise ValueError(f"a pyramid has 1 to {MOST_STAGES} stages, not {stages}")
    return tuple(2**after for after in reversed(range(stages)))


def stage_frames(latent_frames: int, stride: int, *, first_alone: bool) -> int:
    """How many frames a stage of this stride has for a shot's ``latent_frames``."""
    alone = int(first_alone)
    return alone + -(-(latent_frames - alone) // stride)


def window_frames(
    latent_frames: int, stages: int, most: int | None, *, first_alone: bool
) -> tuple[int, ...]:
    """How many frames the windows of each stage have: ``most``, or as many as the stage has."""
    every = [
        stage_frames(latent_frames, stride, first_alone=first_alone)
        for stride in stage_strides(stages)
    ]
    return tuple(min(frames, most or frames) for frames in every)


def covered(frame: int, stride: int, latent_frames: int, *, first_alone: bool) -> tuple[int, int]:
    """The shot's latent frames ``[start, stop)`` that a stage's frame stands for."""
    (start,) = firsts(frame, frame + 1, stride, first_alone=first_alone)
    alone = first_alone and frame == 0
    return start, min(start + (1 if alone else stride), latent_frames)


def firsts(start: int, stop: int, stride: int, *, first_alone: bool) -> list[int]:
    """The first latent frame that each of a stage's frames ``[start, stop)`` stands for."""
    alone = int(first_alone)
    return [n if n < alone else alone + (n - alone) * stride for n in range(start, stop)]


def parent(frame: int, *, first_alone: bool) -> tuple[int, bool]:
    """The frame of the stage before that stands for this one, and whether this is the second of
    the pair."""
    alone = int(first_alone)
    if frame < alone:
        return frame, False
    return alone + (frame - alone) // 2, bool((frame - alone) % 2)


def parents(start: int, stop: int, *, first_alone: bool) -> tuple[int, int]:
    """The frames ``[start, stop)`` of the stage before that stand for these."""
    return (
        parent(start, first_alone=first_alone)[0],
        parent(stop - 1, first_alone=first_alone)[0] + 1,
    )


def split_steps(steps: int, shares: Sequence[int]) -> tuple[int, ...]:
    """Share a number of steps out over the stages, coarsest first: 20 in 1-1-1 are 7, 7, 6.

    Every stage has at least one. Raises ValueError where that cannot be."""
    if not shares or min(shares) < 1:
        raise ValueError(f"each stage needs a share of 1 or more, not {list(shares)}")
    if steps < len(shares):
        raise ValueError(f"{steps} steps are too few for {len(shares)} stages: each needs one")
    counts = [max(1, steps * share // sum(shares)) for share in shares]
    while sum(counts) != steps:
        # Whoever is farthest from its share; the coarser one where two are.
        change = 1 if sum(counts) < steps else -1
        lack = [steps * share / sum(shares) - n for share, n in zip(shares, counts, strict=True)]
        candidates = [i for i, n in enumerate(counts) if n + change >= 1]
        counts[max(candidates, key=lambda i: (change * lack[i], -i))] += change
    return tuple(counts)
