"""The temporal pyramid of TPDiff (arXiv 2503.09566): the mathematics, for any noise schedule.

A schedule mixes x_t = signal(t) x + noise(t) e. All that matters of a time is its ratio
noise / signal, so flow matching and variance-preserving diffusion are treated alike.

A pyramid of K stages runs the noisy times at a low frame rate. Stage k starts from the frames of
the stage before, each repeated for two (``jobs.pyramid`` has the rule for odd ones). Within a stage
the model sees an ordinary diffusion of its own pair (X_k, e_k), so that every scheduler steps it
unchanged.

Corrections to the paper: at a jump the repeated frames are scaled by signal_s / signal_e (its
equations 15 and 23 print signal_e itself). The pair is computed without dividing by the start's
signal, which is 0 in the first stage (its equation for e_k divides).

Shapes: frames lie along one dimension, named by ``dim``; by default 2, as in [B, C, T, H, W].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from jobs.pyramid import covered, firsts, parent, stage_frames, stage_strides


@dataclass(frozen=True, slots=True)
class Level:
    """A time of a schedule, and its mix of signal and noise."""

    time: float
    signal: float
    noise: float

    @property
    def ratio(self) -> float:
        """Noise to signal; infinite for pure noise."""
        return self.noise / self.signal if self.signal else math.inf


class NoisePath(Protocol):
    """A schedule over times from 0 (clean) to ``last``."""

    last: float

    def at(self, time: float) -> Level: ...

    def of_ratio(self, ratio: float) -> Level:
        """Where noise / signal is so large."""
        ...


class FlowPath:
    """Flow matching: signal 1 - t, noise t, for t from 0 to 1."""

    last = 1.0

    def at(self, time: float) -> Level:
        return Level(time, 1 - time, time)

    def of_ratio(self, ratio: float) -> Level:
        return self.at(ratio / (1 + ratio))


def shifted(time: Any, shift: float) -> Any:
    """The flow shift of a time from 0 to 1, or of an array of them."""
    return shift * time / (1 + (shift - 1) * time)


def unshifted(time: Any, shift: float) -> Any:
    """The time that ``shifted`` takes to this one."""
    return time / (shift - (shift - 1) * time)


class VariancePath:
    """Variance-preserving diffusion: signal sqrt(a), noise sqrt(1 - a), where a is the cumulative
    product of alphas at trained, whole times; 0 steps of noise is time 0, the least trained one."""

    def __init__(self, alphas_cumprod: Sequence[float]) -> None:
        self._alphas = np.asarray(alphas_cumprod, dtype=np.float64)
        with np.errstate(divide="ignore"):  # the last time may be pure noise
            self._ratios = np.sqrt((1 - self._alphas) / self._alphas)
        self.last = float(len(self._alphas) - 1)

    def at(self, time: float) -> Level:
        """At the nearest trained time: a model knows no others."""
        trained = round(min(max(time, 0), self.last))
        alpha = float(self._alphas[trained])
        return Level(float(trained), math.sqrt(alpha), math.sqrt(1 - alpha))

    def of_ratio(self, ratio: float) -> Level:
        apart = np.abs(np.log(self._ratios) - math.log(ratio))
        return self.at(float(apart.argmin()))


#: What a coarse frame shows of the latent frames that it stands for: their mean, in which what is
#: quick is in many places at once, or the first one of them.
Coarse = Literal["mean", "first"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One level of the pyramid: it denoises from ``start`` to ``end`` at a frame of ``stride``
    latent frames."""

    stride: int
    start: Level
    end: Level
    is_first: bool
    coarse: Coarse = "mean"


@dataclass(frozen=True, slots=True)
class Jump:
    """Between two stages: repeated frames are multiplied by ``scale``, and ``noise`` times fresh
    noise is added, with opposite signs to the two frames of a pair.

    Repeating makes the noise of a pair equal; the antithetic noise makes it independent again
    (the covariance with c = -1, section 3.4 of the paper's appendix)."""

    scale: float
    noise: float


def lay_stages(path: NoisePath, stages: int, coarse: Coarse = "mean") -> tuple[Stage, ...]:
    """The stages, coarsest first. Their ends divide the schedule's times evenly; each but the
    first starts where noise / signal is sqrt(2) times that of the end before, a little back in
    time. ``coarse`` counts in training alone."""
    strides = stage_strides(stages)
    ends = [path.at(path.last * after / stages) for after in reversed(range(stages))]
    starts = [path.at(path.last), *(path.of_ratio(math.sqrt(2) * end.ratio) for end in ends[:-1])]
    return tuple(
        Stage(stride, start, end, is_first=number == 0, coarse=coarse)
        for number, (stride, start, end) in enumerate(zip(strides, starts, ends, strict=True))
    )


def jump_between(end: Level, start: Level) -> Jump:
    """From a stage's end to the next one's start. Mean and variance of every frame are exact; so
    is the independence of a pair's noise where start.ratio is exactly sqrt(2) * end.ratio. At
    trained whole times it nearly is, and what is left is their correlation."""
    scale = start.signal / end.signal
    return Jump(scale, math.sqrt(start.noise**2 - (scale * end.noise) ** 2))


# -- frames


def down(
    x: Tensor, stride: int, *, first_alone: bool, dim: int = 2, coarse: Coarse = "mean"
) -> Tensor:
    """What each of a stage's frames shows of the latent frames that it stands for."""
    if stride == 1:
        return x
    latent_frames = x.shape[dim]
    count = stage_frames(latent_frames, stride, first_alone=first_alone)
    if coarse == "first":
        index = torch.tensor(firsts(0, count, stride, first_alone=first_alone), device=x.device)
        return x.index_select(dim, index)
    ranges = (covered(n, stride, latent_frames, first_alone=first_alone) for n in range(count))
    parts = (x.narrow(dim, start, stop - start) for start, stop in ranges)
    return torch.cat([part.mean(dim, keepdim=True) for part in parts], dim)


def up(x: Tensor, start: int, stop: int, first: int, *, first_alone: bool, dim: int = 2) -> Tensor:
    """Frames ``[start, stop)`` of the next stage, each a repeat of the one that stands for it.
    ``first`` is the number of x's first frame."""
    index = [parent(n, first_alone=first_alone)[0] - first for n in range(start, stop)]
    return x.index_select(dim, torch.tensor(index, device=x.device))


def jump(
    jump: Jump,
    x: Tensor,
    noise: Tensor,
    start: int,
    stop: int,
    first: int,
    *,
    first_alone: bool,
    dim: int = 2,
) -> Tensor:
    """Frames ``[start, stop)`` of the next stage at its start, from those of this stage at its end.
    ``noise`` is standard normal, one frame for each frame of ``x``: a pair takes it with opposite
    signs."""
    signs = [1.0 - 2.0 * parent(n, first_alone=first_alone)[1] for n in range(start, stop)]
    shape = [1] * x.ndim
    shape[dim] = stop - start
    sign = torch.tensor(signs, dtype=x.dtype, device=x.device).view(shape)
    where = {"first_alone": first_alone, "dim": dim}
    repeated, fresh = (up(each, start, stop, first, **where) for each in (x, noise))
    return jump.scale * repeated + jump.noise * sign * fresh


# -- what a stage is trained on


def stage_pair(
    stage: Stage, x: Tensor, noise: Tensor, *, first_alone: bool, dim: int = 2
) -> tuple[Tensor, Tensor]:
    """The clean clip X_k and the noise e_k of a stage's own diffusion.

    ``x`` holds all latent frames, ``noise`` the stage's frames. The stage leads from start.signal
    S + start.noise e to end.signal E + end.noise e, where E are its frames and S those of the
    stage before, repeated. Both lie on signal X_k + noise e_k, as does all between them:
    a scheduler that predicts noise is to be given e_k, one that predicts flow e_k - X_k.
    """
    ours = down(x, stage.stride, first_alone=first_alone, dim=dim, coarse=stage.coarse)
    if stage.is_first:  # starts from noise alone
        return ours, noise
    coarse = down(x, 2 * stage.stride, first_alone=first_alone, dim=dim, coarse=stage.coarse)
    repeated = up(coarse, 0, ours.shape[dim], 0, first_alone=first_alone, dim=dim)
    start, end = stage.start, stage.end
    across = start.signal * end.noise - end.signal * start.noise
    clean = (end.noise * start.signal * repeated - start.noise * end.signal * ours) / across
    return clean, noise + start.signal * end.signal / across * (ours - repeated)
