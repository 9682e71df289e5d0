"""Estimates of a tile's memory beside the model, from configuration files alone."""

from __future__ import annotations

from collections.abc import Iterator

from jobs.attention_plan import branches_of
from jobs.families.features import feature_bytes
from jobs.families.slicing_memory import DECODERS, DECODES_BY_FRAME, sliced_bytes
from jobs.geometry import ModelGeometry
from jobs.model_folder import ModelInfo
from jobs.spec import ResolvedSpec

#: Models with less weights than this render in float32 unless told otherwise.
SMALL_MODEL_BYTES = 2**30


def sliced_tile_bytes(job: ResolvedSpec, model: ModelInfo, dtype: str, slices: int) -> int:
    branches = 2 if model.family.batches_branches else 1
    config = model.configs[model.family.denoiser]
    size = largest_tile(job, model.geometry)
    return sliced_bytes(config, size, dtype, slices, text_tokens=job.text_tokens, branches=branches)


def dtype_of(job: ResolvedSpec, model: ModelInfo) -> str:
    return _auto_dtype(model) if job.dtype == "auto" else job.dtype


def _auto_dtype(model: ModelInfo) -> str:
    """A function of the model alone, so that the film does not depend on who renders it."""
    small = sum(model.parameters_bytes.values()) < SMALL_MODEL_BYTES
    return "float32" if small else "bfloat16"


def largest_tile(job: ResolvedSpec, geometry: ModelGeometry) -> tuple[int, int, int]:
    """Latent frames, height and width."""
    longest = max(geometry.latent_frames(shot.pixel_frames) for shot in job.shots)
    scale = geometry.spatial_scale
    frames = min(job.window_latent_frames, longest)
    return frames, job.height_px // scale, job.width_px // scale


def tile_bytes(job: ResolvedSpec, model: ModelInfo, dtype: str) -> int:
    """Estimated memory of one tile beside the model: the larger of denoising and decoding."""
    slicing = job.accelerations.slicing
    if slicing is None or slicing.slices is None:
        latent_size = largest_tile(job, model.geometry)
        text = job.text_tokens
        denoise = model.family.denoise_bytes(model.configs, latent_size, dtype, text)
    else:
        denoise = sliced_tile_bytes(job, model, dtype, slicing.slices)
    # What a step gets from the one before it, and what it leaves.
    return max(denoise + 2 * kept_bytes(job, model, dtype), _decode_bytes(job, model))


def _decode_bytes(job: ResolvedSpec, model: ModelInfo) -> int:
    slicing, vae = job.accelerations.slicing, model.configs["vae"]
    latent_size = largest_tile(job, model.geometry)
    if slicing is not None and slicing.slices and vae["_class_name"] in DECODERS:
        return sliced_bytes(vae, latent_size, "float32", slicing.slices, text_tokens=0, branches=1)
    pixel_frames = model.geometry.pixel_frames(latent_size[0])
    return model.family.decode_bytes(model.configs, job.height_px, job.width_px, pixel_frames)


def decoder_warnings(job: ResolvedSpec, model: ModelInfo) -> Iterator[str]:
    """Slicing was asked for, and a decoder that takes many frames at once it cannot cut."""
    vae = model.configs["vae"]["_class_name"]
    if job.accelerations.slicing is None or vae in (*DECODERS, *DECODES_BY_FRAME):
        return
    yield (
        f"slicing does not cut this model's decoder ({vae}): a tile's takes about "
        f"{_decode_bytes(job, model) / 2**20:,.0f} MiB, however many slices; a smaller size or "
        "shorter windows take less"
    )


def kept_bytes(job: ResolvedSpec, model: ModelInfo, dtype: str) -> int:
    """Estimate of what accelerations keep with a tile from a step to the next: layers' features."""
    asked = job.accelerations
    guided = any(model.geometry.has_two_branches(shot.guidance) for shot in job.shots)
    kept = (2 if guided else 1) if asked.rehash else 0
    if asked.fast_attention and (plans := asked.fast_attention.stages):
        branches = branches_of(guided=guided, batched=model.family.batches_branches)
        each = zip(plans, asked.may_skip(job.stage_steps), strict=True)
        most = max(
            len(plan.carried_after(step, branches, may_skip))
            for plan, may_skip in each
            for step in range(plan.steps)
        )
        kept += most * (2 if "both" in branches else 1)
    if not kept:
        return 0
    config, tile = model.configs[model.family.denoiser], largest_tile(job, model.geometry)
    return kept * feature_bytes(config, tile, dtype, job.text_tokens)
