"""What a user would pick instead on a UNet (AnimateDiff, Stable Video Diffusion): DeepCache, from
PyPI, and diffusers' Pyramid Attention Broadcast. FasterCache and all first-block caches are made
for transformers. Both branches go through a UNet in one call, as its pipelines do it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import diffusers

from benchmarks.attached import Sweep, around, from_pypi, with_timestep
from benchmarks.here import Tune
from jobs.model_folder import inspect_model, resolve_model

#: By family, the timesteps between which PAB may leave attention out: of 1000, or, where they are a
#: quarter of a noise level's logarithm, all of them.
BROADCAST_BETWEEN = {"animatediff": (50.0, 950.0), "svd": (-100.0, 100.0)}


def deepcache(job: Mapping[str, Any], branch: int) -> dict[str, Tune]:
    """The deep part every so many steps alone."""
    return {str(n): partial(_deepcache, n, branch) for n in (2, 3, 4, 5)}


@contextmanager
def _deepcache(every: int, branch: int, family: Any) -> Iterator[None]:
    """DeepCache finds a step by the place of its timestep among a pipeline's: here, of those that
    came."""
    timesteps: list[float] = []
    pipeline = SimpleNamespace(
        unet=family.denoiser, scheduler=SimpleNamespace(timesteps=timesteps)
    )  # fmt: skip

    def attach(model: Any) -> None:
        helper = from_pypi("DeepCache").DeepCacheSDHelper(pipe=pipeline)
        helper.set_params(cache_interval=every, cache_branch_id=branch)
        helper.enable()

    def note(module: Any, args: tuple[Any, ...]) -> None:
        timesteps.append(args[1].item())

    noted = family.denoiser.register_forward_pre_hook(note)
    try:
        with around(family, attach):
            yield
    finally:
        noted.remove()


def unet_pyramid_attention(job: Mapping[str, Any]) -> dict[str, Tune]:
    """Attention in space, in time and to the text, each so many steps apart, as its paper does."""
    between = BROADCAST_BETWEEN[inspect_model(resolve_model(job["model"])).family.name]

    def attach(every: int, model: Any, timestep: Callable[[], float]) -> None:
        config = diffusers.PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=every,
            temporal_attention_block_skip_range=every + 2,
            cross_attention_block_skip_range=every + 4,
            spatial_attention_timestep_skip_range=between,
            temporal_attention_timestep_skip_range=between,
            cross_attention_timestep_skip_range=between,
            spatial_attention_block_identifiers=(r"attentions\.\d+\.transformer_blocks",),
            temporal_attention_block_identifiers=("motion_modules", "temporal_transformer_blocks"),
            cross_attention_block_identifiers=("transformer_blocks",),
            current_timestep_callback=timestep,
        )
        diffusers.apply_pyramid_attention_broadcast(model, config)

    return {str(n): partial(with_timestep, attach=partial(attach, n)) for n in (2, 3, 5)}


#: A branch is where DeepCache leaves the way down: after so many layers, three to a level. Its own
#: default is the first.
UNET_PEERS: dict[str, Sweep] = {
    "DeepCache": partial(deepcache, branch=0),
    "DeepCache, branch 1": partial(deepcache, branch=1),
    "PAB, UNet": unet_pyramid_attention,
}
