"""What a user would pick instead, on the same model: diffusers' own caches, cache-dit, para-attn;
for UNets, see ``unet_peers.py``.

Each is a sweep: settings by the value that is swept, as what is put around a render. All of it is
taken off again afterwards, whatever the peer itself would leave. cache-dit, para-attn and DeepCache
are from PyPI: ``pip install 'longtake[peers]'``.

Peers remember steps, but know neither tiles nor films: each render has a fresh one, and one window.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import diffusers
import torch

from benchmarks.attached import (
    HooksNothing,
    Sweep,
    around,
    cached,
    from_pypi,
    in_one_batch,
    with_timestep,
)
from benchmarks.here import Tune, render_here
from benchmarks.unet_peers import UNET_PEERS
from jobs.families.family import FamilyFacts
from jobs.model_folder import inspect_model, resolve_model

#: How many steps always run first, where a peer can be told: as in our spectral form, and as in the
#: older two. Every value is swept with both, for some peers gain by the one, some by the other.
FIRSTS = (1, 3)
#: And the steps that always run at the end.
LAST = 1


def _with_firsts(values: Iterable[Any], tune: Callable[[Any, int], Tune]) -> dict[str, Tune]:
    return {f"{value}, first {first}": tune(value, first) for first in FIRSTS for value in values}


# -- diffusers, a state for each branch


def first_block(job: Mapping[str, Any]) -> dict[str, Tune]:
    def config(threshold: float) -> Any:
        return diffusers.FirstBlockCacheConfig(threshold=threshold)

    return {str(t): cached(config(t)) for t in (0.05, 0.07, 0.1, 0.15, 0.2, 0.3)}


#: What TaylorSeer forecasts of a family's blocks: the branches that its paper caches. Of a block of
#: HunyuanVideo's whose branches end in one layer, that layer, too.
BRANCHES = {
    "wan": [r"blocks\.\d+\.(attn1|attn2|ffn)"],
    "ltx": [r"transformer_blocks\.\d+\.(attn1|attn2|ff)"],
    "cogvideox": [r"transformer_blocks\.\d+\.(attn1|ff)"],
    "hunyuan-video": [
        r"transformer_blocks\.\d+\.(attn|ff|ff_context)",
        r"single_transformer_blocks\.\d+\.(attn|proj_mlp|proj_out)",
    ],
}


def _facts(job: Mapping[str, Any]) -> FamilyFacts:
    return inspect_model(resolve_model(job["model"])).family


def taylorseer(job: Mapping[str, Any], order: int) -> dict[str, Tune]:
    """Every so many steps; forecasts every block's attention and feed-forward."""
    branches = BRANCHES[_facts(job).name]
    return _with_firsts((2, 3, 4), partial(_taylorseer, job, order, cache_identifiers=branches))


def taylorseer_lite(job: Mapping[str, Any], order: int) -> dict[str, Tune]:
    """Forecasts what leaves the model alone; no block runs in between."""
    return _with_firsts((2, 3, 4, 5), partial(_taylorseer, job, order, use_lite_mode=True))


def _taylorseer(job: Mapping[str, Any], order: int, every: int, first: int, **which: Any) -> Tune:
    return cached(
        diffusers.TaylorSeerCacheConfig(
            cache_interval=every,
            disable_cache_before_step=first,
            disable_cache_after_step=job["steps"] - LAST,
            max_order=order,
            taylor_factors_dtype=torch.float32,
            **which,
        )
    )


def seacache(job: Mapping[str, Any]) -> dict[str, Tune]:
    def tune(threshold: float, first: int) -> Tune:
        config = diffusers.SeaCacheConfig(
            threshold=threshold, retention_steps=first, cache_end_steps=LAST,
            max_consecutive_cached=4,
        )  # fmt: skip
        return cached(config)

    return _with_firsts((0.15, 0.2, 0.25, 0.3, 0.4, 0.5), tune)


def magcache(job: Mapping[str, Any]) -> dict[str, Tune]:
    """With ratios of magnitudes that two other prompts had, measured by diffusers itself."""
    ratios = mag_ratios(job)

    def tune(threshold: float, first: int) -> Tune:
        config = diffusers.MagCacheConfig(
            threshold=threshold, max_skip_steps=4, retention_ratio=first / job["steps"],
            num_inference_steps=job["steps"], mag_ratios=ratios,
        )  # fmt: skip
        return cached(config)

    return _with_firsts((0.02, 0.04, 0.08, 0.16, 0.32), tune)


def mag_ratios(job: Mapping[str, Any]) -> list[float]:
    """One ratio for each step: the mean over the shots ``job["told"]`` and both branches."""
    steps = job["steps"]
    found: list[list[float]] = []
    # With a step more than there are, it does not forget the ratios at the end of the render.
    config = diffusers.MagCacheConfig(calibrate=True, num_inference_steps=steps + 1)
    for asked in job["told"]:

        @contextmanager
        def read(family: Any) -> Iterator[None]:
            with cached(config)(family):
                yield
                found.extend(_ratios(family.denoiser))

        render_here(_one(job, asked), read)
    if not found or any(len(each) != steps for each in found):
        raise HooksNothing(f"MagCache's calibration has {[len(each) for each in found]} ratios")
    return [sum(column) / len(found) for column in zip(*found, strict=True)]


def _ratios(model: Any) -> Iterable[list[float]]:
    found = (getattr(module, "_diffusers_hook", None) for module in model.modules())
    hooks = (each.get_hook("mag_cache_leader_block_hook") for each in found if each)
    (hook,) = filter(None, hooks)
    return [list(state.calibration_ratios) for state in hook.state_manager._state_cache.values()]


def _one(job: Mapping[str, Any], asked: Mapping[str, str]) -> dict[str, Any]:
    return {name: each for name, each in job.items() if name != "told"} | dict(asked)


# -- diffusers, one state for all: both branches in one call


def pyramid_attention(job: Mapping[str, Any]) -> dict[str, Tune]:
    """Self-attention every so many steps, cross-attention every second of those."""
    put = with_timestep if _facts(job).batches_branches else in_one_batch

    def attach(every: int, model: Any, timestep: Callable[[], float]) -> None:
        for name, module in model.named_modules():
            if name.endswith(".attn2"):
                module.is_cross_attention = True  # LTX-Video's does not say so
        model.enable_cache(
            diffusers.PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=every,
                cross_attention_block_skip_range=2 * every,
                spatial_attention_timestep_skip_range=(50, 950),
                cross_attention_timestep_skip_range=(50, 950),
                spatial_attention_block_identifiers=("blocks",),
                cross_attention_block_identifiers=("blocks",),
                current_timestep_callback=timestep,
            )
        )

    return {str(n): partial(put, attach=partial(attach, n)) for n in (2, 3, 4, 6)}


def fastercache(job: Mapping[str, Any]) -> dict[str, Tune]:
    """The unconditional half every so many steps, attention every second step of those without."""

    def attach(every: int, model: Any, timestep: Callable[[], float]) -> None:
        model.enable_cache(
            diffusers.FasterCacheConfig(
                spatial_attention_block_skip_range=2,
                spatial_attention_timestep_skip_range=(-1, 901),
                spatial_attention_block_identifiers=("^blocks.*attn1",),
                unconditional_batch_skip_range=every,
                unconditional_batch_timestep_skip_range=(-1, 901),
                attention_weight_callback=lambda _: 0.3,
                tensor_format="BCFHW",
                current_timestep_callback=timestep,
            )
        )

    return {str(n): partial(in_one_batch, attach=partial(attach, n)) for n in (2, 3, 5, 8)}


# -- from PyPI


def cache_dit(job: Mapping[str, Any], forecasts: bool = False) -> dict[str, Tune]:
    """DBCache with one block that asks, as first-block caches have, and its TaylorSeer."""
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "WARNING")  # read when it is imported
    peer = from_pypi("cache_dit")

    def attach(threshold: float, first: int, model: Any) -> None:
        config = peer.DBCacheConfig(
            Fn_compute_blocks=1,
            Bn_compute_blocks=0,
            residual_diff_threshold=threshold,
            max_warmup_steps=first,
            max_continuous_cached_steps=4,
            enable_separate_cfg=True,
        )
        calibrator = peer.TaylorSeerCalibratorConfig(taylorseer_order=1) if forecasts else None
        adapter = peer.BlockAdapter(
            transformer=model,
            blocks=model.blocks,
            forward_pattern=peer.ForwardPattern.Pattern_2,
            has_separate_cfg=True,
        )
        peer.enable_cache(adapter, cache_config=config, calibrator_config=calibrator)

    return _with_firsts(
        (0.08, 0.12, 0.2, 0.3, 0.5),
        lambda t, first: partial(around, attach=partial(attach, t, first)),
    )


def para_attn(job: Mapping[str, Any], forecasts: bool = False) -> dict[str, Tune]:
    """Its first-block cache; the branches take turns (``enable_alter_cache``)."""
    importlib.import_module("unittest.mock")  # which it uses and does not import
    states = from_pypi("para_attn.first_block_cache.utils")
    adapters = from_pypi("para_attn.first_block_cache.diffusers_adapters")

    @contextmanager
    def tune(threshold: float, first: int, family: Any) -> Iterator[None]:
        state = states.create_cache_context(
            residual_diff_threshold=threshold, enable_alter_cache=True,
            num_inference_steps=job["steps"], warmup_steps=first,
            enable_taylorseer=forecasts, taylorseer_kwargs={"n_derivatives": 1},
        )  # fmt: skip
        attach = adapters.apply_cache_on_transformer
        with around(family, attach), states.cache_context(state):
            yield

    return _with_firsts((0.07, 0.1, 0.15, 0.2, 0.3), lambda t, first: partial(tune, t, first))


PEERS: dict[str, Sweep] = {
    "FirstBlockCache": first_block,
    "TaylorSeer": partial(taylorseer, order=1),
    "TaylorSeer order 2": partial(taylorseer, order=2),
    "TaylorSeer lite": partial(taylorseer_lite, order=1),
    "TaylorSeer lite order 2": partial(taylorseer_lite, order=2),
    "MagCache": magcache,
    "SeaCache": seacache,
    "PAB": pyramid_attention,
    "FasterCache": fastercache,
    "cache-dit": cache_dit,
    "cache-dit TaylorSeer": partial(cache_dit, forecasts=True),
    "para-attn": para_attn,
    "para-attn TaylorSeer": partial(para_attn, forecasts=True),
    **UNET_PEERS,
}


_DIFFUSERS = (
    "FirstBlockCache", "TaylorSeer", "TaylorSeer order 2", "TaylorSeer lite",
    "TaylorSeer lite order 2", "MagCache",
)  # fmt: skip

#: The peers that are tuned for a family. SeaCache's own adapter is Wan's, as are the settings here
#: of FasterCache, cache-dit and para-attn; PAB keeps one state for both branches, which take turns
#: in HunyuanVideo where it has both.
OF_FAMILY: dict[str, tuple[str, ...]] = {
    "wan": tuple(kind for kind in PEERS if kind not in UNET_PEERS),
    "ltx": (*_DIFFUSERS, "PAB"),
    "cogvideox": (*_DIFFUSERS, "PAB"),
    "hunyuan-video": _DIFFUSERS,
    "animatediff": tuple(UNET_PEERS),
    "svd": tuple(UNET_PEERS),
}
