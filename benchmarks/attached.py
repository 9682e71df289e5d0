"""What is put around a render to try a peer: its hooks, and none of them afterwards."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from benchmarks.here import Tune

#: Given the job without its prompt, and under ``told`` other prompts to calibrate on: tunes by the
#: value that is swept.
Sweep = Callable[[Mapping[str, Any]], dict[str, Tune]]


class HooksNothing(RuntimeError):
    """A peer that was attached and left the model as it was."""


@contextmanager
def around(family: Any, attach: Callable[[Any], Any]) -> Iterator[None]:
    """With ``attach(model)``, until everything on every module is as it was before.

    Raises HooksNothing for what changes no forward of the model: diffusers' TaylorSeer with its
    default identifiers matches no module of Wan, and does not say so."""
    model = family.denoiser
    before = [(module, dict(vars(module))) for module in model.modules()]
    for module, _ in before:
        vars(module).pop("_diffusers_hook", None)  # it would be filled in place
    try:
        attach(model)
        if not any("forward" in vars(module) for module in model.modules()):
            raise HooksNothing(f"{getattr(attach, 'args', attach)} changes nothing of the model")
        yield
    finally:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)


def cached(config: Any) -> Tune:
    """With one of diffusers' caches, whose states are kept apart by guidance branch."""
    return partial(around, attach=partial(_enable_cache, config))


def _enable_cache(config: Any, model: Any) -> None:
    model.enable_cache(config)


@contextmanager
def with_timestep(family: Any, attach: Callable[[Any, Callable[[], float]], Any]) -> Iterator[None]:
    """PAB and FasterCache ask at which timestep the model is called."""
    now: dict[str, float] = {}

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
        now["timestep"] = float(timestep.flatten()[0])

    noted = family.denoiser.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with around(family, lambda model: attach(model, lambda: now["timestep"])):
            yield
    finally:
        noted.remove()


@contextmanager
def in_one_batch(family: Any, attach: Callable[[Any, Callable[[], float]], Any]) -> Iterator[None]:
    """PAB and FasterCache count calls and keep one state whatever the branch. ``WanPipeline`` and
    this renderer call Wan's model for one branch after the other, so that either would give the
    unconditional branch what the other one computed (or fail: FasterCache halves each batch). Here
    they get what they were made for: one call, the unconditional half first."""
    family.predict = partial(_predict_in_one_batch, family.denoiser)
    try:
        with with_timestep(family, attach):
            yield
    finally:
        del family.predict


@torch.no_grad()
def _predict_in_one_batch(
    model: Any, shot: Any, latents: Any, stepper: Any, step: int, embeddings: Any, branch: Any
) -> torch.Tensor:
    assert len(shot.stage_steps) == 1, "peers know no pyramid"
    with branch("cond"):
        out = model(
            hidden_states=torch.cat([latents, latents]),
            timestep=stepper.timesteps[step].expand(2),
            encoder_hidden_states=torch.cat([embeddings["uncond"], embeddings["cond"]]),
            return_dict=False,
        )[0]
    uncond, cond = out.chunk(2)
    return uncond + shot.guidance[0] * (cond - uncond)


def from_pypi(name: str) -> Any:
    """A module of the extra ``peers``. Raises SystemExit with what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SystemExit(
            f"{name.split('.')[0]} is not installed, and this comparison needs it; run "
            f"pip install 'longtake[peers]' ({error})"
        ) from error
