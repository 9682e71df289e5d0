"""Estimates of a tile's memory beside the model, from configuration files alone."""

from __future__ import annotations

import functools

from jobs.attention_plan import AttentionPlan, Branch, Steps, branches_of
from jobs.families.decoding_memory import Piece, decoding_bytes
from jobs.families.family import Config
from jobs.families.features import feature_bytes
from jobs.families.slicing_groups import NOTHING_WHOLE, Whole
from jobs.families.slicing_memory import (
    DECODERS,
    sliced_bytes,
    sliced_decoding_bytes,
    whole_attention,
)
from jobs.families.whole_memory import whole_bytes
from jobs.geometry import ModelGeometry
from jobs.model_folder import ModelInfo
from jobs.pyramid import stage_frames, stage_strides
from jobs.spec import ResolvedSpec
from jobs.units import MUCH_MEMORY, ShotRender
from orchestrator.plan import Plan, StagePlan, lay_pieces, lay_windows
from orchestrator.roster import Policy

#: Models with less weights than this render in float32 unless told otherwise.
SMALL_MODEL_BYTES = 2**30


def step_bytes(
    job: ResolvedSpec,
    model: ModelInfo,
    dtype: str,
    slices: int | None,
    whole: Whole = NOTHING_WHOLE,
) -> int:
    """Of one pass through the denoiser, in slices or without. ``whole`` as ``whole_attention``
    gives it: without slices a layer's feed-forward needs more than its attention does."""
    config, size = model.configs[model.family.denoiser], denoised_tile(job, model.geometry)
    branches, tokens = _batch(job, model), job.text_tokens
    if slices is None:
        return whole_bytes(config, size, dtype, text_tokens=tokens, branches=branches)
    return sliced_bytes(
        config, size, dtype, slices, text_tokens=tokens, branches=branches, whole=whole
    )


def dtype_of(job: ResolvedSpec, model: ModelInfo) -> str:
    return _auto_dtype(model) if job.dtype == "auto" else job.dtype


def decoder_dtype_of(job: ResolvedSpec, model: ModelInfo) -> str:
    """By itself that of the denoiser, as diffusers' pipelines have it, but for Wan's autoencoder,
    which its authors run in float32."""
    if job.decoder_dtype != "auto":
        return job.decoder_dtype
    return "float32" if model.family.decodes_in_float32 else dtype_of(job, model)


def _auto_dtype(model: ModelInfo) -> str:
    """A function of the model alone, so that the film does not depend on who renders it."""
    small = sum(model.parameters_bytes.values()) < SMALL_MODEL_BYTES
    return "float32" if small else "bfloat16"


def largest_tile(job: ResolvedSpec, geometry: ModelGeometry) -> tuple[int, int, int]:
    """Latent frames, height and width of a window."""
    frames, scale = (
        min(job.window_latent_frames, _longest_shot(job, geometry)),
        geometry.spatial_scale,
    )
    return frames, job.height_px // scale, job.width_px // scale


def denoised_tile(job: ResolvedSpec, geometry: ModelGeometry) -> tuple[int, int, int]:
    """The same of the longest tile that is denoised: a window, or a coarsest stage, whole."""
    return denoised_frames(job, geometry), *largest_tile(job, geometry)[1:]


def denoised_frames(job: ResolvedSpec, geometry: ModelGeometry) -> int:
    """Of that tile."""
    longest = _longest_shot(job, geometry)
    whole = 0
    if job.first_stage == "whole":
        stride = stage_strides(len(job.stage_steps))[0]
        whole = stage_frames(longest, stride, first_alone=geometry.first_alone)
    return max(min(job.window_latent_frames, longest), whole)


def _longest_shot(job: ResolvedSpec, geometry: ModelGeometry) -> int:
    return max(geometry.latent_frames(shot.pixel_frames) for shot in job.shots)


def tile_bytes(job: ResolvedSpec, model: ModelInfo, dtype: str) -> int:
    """Estimated memory of one tile beside the model: the larger of denoising and decoding."""
    return max(denoise_bytes(job, model, dtype), decode_bytes(job, model))


def denoise_bytes(job: ResolvedSpec, model: ModelInfo, dtype: str) -> int:
    """Of a step, with what it gets from the one before it, and what it leaves."""
    slicing = job.accelerations.slicing
    slices = None if slicing is None else slicing.slices
    return max(
        step_bytes(job, model, dtype, slices, whole) + features
        for whole, features in _held(job, model, dtype)
    )


def decode_bytes(job: ResolvedSpec, model: ModelInfo) -> int:
    """Of the piece that needs most; in slices where its autoencoder is one that slicing cuts."""
    pieces, slicing, vae = _pieces(job, model.geometry), job.accelerations.slicing, _vae(model)
    dtype = decoder_dtype_of(job, model)
    if slicing is not None and slicing.slices is not None and cuts_decoding(model):
        slices = slicing.slices
        return max(sliced_decoding_bytes(vae, piece, dtype, slices) for piece in pieces)
    return max(decoding_bytes(vae, piece, dtype) for piece in pieces)


def _pieces(job: ResolvedSpec, geometry: ModelGeometry) -> list[Piece]:
    """Of the longest shot: of each length the one with most around it, and those at the ends."""
    frames, (_, height, width) = _longest_shot(job, geometry), largest_tile(job, geometry)
    windows = lay_windows(frames, job.window_latent_frames, job.overlap_latent_frames)
    laid = lay_pieces(windows, frames, geometry.piece_border)
    laid = ((0, frames),) if geometry.single_window else laid
    inwards = sorted(laid, key=lambda piece: -abs(sum(piece) - frames))
    kinds = {(stop - start, start > 0, stop < frames): (start, stop) for start, stop in inwards}
    return [
        Piece(stop - start, height, width, before=start, after=frames - stop)
        for start, stop in kinds.values()
    ]


def cuts_decoding(model: ModelInfo) -> bool:
    """Whether slices make decoding smaller, too."""
    return _vae(model)["_class_name"] in DECODERS


def _vae(model: ModelInfo) -> Config:
    return model.configs["vae"]


def kept_bytes(job: ResolvedSpec, model: ModelInfo, dtype: str) -> int:
    """Estimate of what accelerations keep with a tile from a step to the next: layers' features."""
    asked, branches = job.accelerations, _branches(job, model)
    kept = _rehashed_bytes(job, model, dtype)
    if asked.fast_attention and (plans := asked.fast_attention.stages):
        each = zip(plans, asked.may_skip(job.stage_steps), strict=True)
        most = max(
            len(plan.carried_after(step, branches, may_skip))
            for plan, may_skip in each
            for step in range(plan.steps)
        )
        kept += most * _layer_bytes(job, model, dtype)
    return kept


def searched_bytes(job: ResolvedSpec, model: ModelInfo, dtype: str) -> int:
    """Estimate of what a search for attention plans holds of a sample from step to step: of every
    layer and branch the output, and the residual of its window."""
    config = model.configs[model.family.denoiser]
    layers: int = config["num_layers"] + config.get("num_single_layers", 0)
    return 2 * layers * len(_branches(job, model)) * _layer_bytes(job, model, dtype)


def _held(job: ResolvedSpec, model: ModelInfo, dtype: str) -> set[tuple[Whole, int]]:
    """Of every kind of step: what its attention of the whole takes, as ``whole_attention`` gives
    it, and the bytes of features that lie with the tile: those that it got, and those that it makes
    anew."""
    asked, branches = job.accelerations, _branches(job, model)
    rehashed = 2 * _rehashed_bytes(job, model, dtype)
    plans = (asked.fast_attention.stages if asked.fast_attention else None) or ()
    if not plans:
        return {(NOTHING_WHOLE, rehashed)}
    layer = _layer_bytes(job, model, dtype)
    return {
        (whole, rehashed + int(layers * layer))
        for plan, may_skip in zip(plans, asked.may_skip(job.stage_steps), strict=True)
        for whole, layers in _kinds_of_steps(plan, branches, may_skip)
    }


@functools.lru_cache(maxsize=64)  # a search for slices asks for each number of them
def _kinds_of_steps(
    plan: AttentionPlan, branches: tuple[Branch, ...], may_skip: Steps
) -> frozenset[tuple[Whole, float]]:
    """Of a plan's steps: what attention takes of the whole, and how many layers' features lie with
    the tile."""
    return frozenset(
        (whole_attention(plan, step, branches), plan.held_in(step, branches, may_skip))
        for step in range(plan.steps)
    )


def _branches(job: ResolvedSpec, model: ModelInfo) -> tuple[Branch, ...]:
    guided = any(model.geometry.has_two_branches(shot.guidance) for shot in job.shots)
    return branches_of(guided=guided, batched=model.family.batches_branches)


def _batch(job: ResolvedSpec, model: ModelInfo) -> int:
    """How many guidance branches go through the denoiser at once."""
    return 2 if "both" in _branches(job, model) else 1


def _rehashed_bytes(job: ResolvedSpec, model: ModelInfo, dtype: str) -> int:
    """A feature of the video of each branch."""
    if job.accelerations.rehash is None:
        return 0
    branches, tile = _branches(job, model), denoised_tile(job, model.geometry)
    feature = feature_bytes(model.configs[model.family.denoiser], tile, dtype)
    return (2 if "both" in branches else len(branches)) * feature


def _layer_bytes(job: ResolvedSpec, model: ModelInfo, dtype: str) -> int:
    """What a layer's attention gives of the video, and of text that attends with it; of both
    branches where they are one."""
    config, tile = model.configs[model.family.denoiser], denoised_tile(job, model.geometry)
    text_tokens = job.text_tokens if model.family.joint_text else 0
    return _batch(job, model) * feature_bytes(config, tile, dtype, text_tokens)


def live_bytes(plan: Plan) -> int:
    """About what the outputs in flight take: a wavefront is ``steps`` windows long in each stage,
    and each keeps the states of two checkpoint intervals. Of what is kept with a window, if it is
    much, only what a step reads and makes, and workers may keep it themselves."""

    def stage_bytes(render: ShotRender, stage: StagePlan) -> int:
        output, memory = _state_bytes(plan, render, stage)
        windows = min(len(stage.windows), render.steps)
        states = min(2 * plan.checkpoint_every, stage.steps + 1)
        remembered = states if memory < MUCH_MEMORY else 2
        return windows * (states * output + remembered * memory)

    return max(sum(stage_bytes(shot.render, stage) for stage in shot.stages) for shot in plan.shots)


def checkpoint_bytes(plan: Plan, workers: int) -> int:
    """The most that checkpoints take on disk: two lines of each window between the film's first
    unfinished one and the one that is farthest ahead, which is a wavefront's length away, or as far
    as workers run ahead who have nothing to do before. 0 where no stage has more steps than there
    are between lines."""
    states = [
        sum(_state_bytes(plan, shot.render, stage))
        for shot in plan.shots
        for stage in shot.stages
        if stage.steps > plan.checkpoint_every
    ]
    steps = max(shot.render.steps for shot in plan.shots)
    windows = sum(max(len(stage.windows) for stage in shot.stages) for shot in plan.shots)
    ahead = min(windows, steps + Policy().depth * workers)
    return 2 * ahead * max(states, default=0)


def _state_bytes(plan: Plan, render: ShotRender, stage: StagePlan) -> tuple[int, int]:
    """Of the stage's longest window after a step. Its output: latents, prediction and history in
    float32, and what looking back at latents takes. What accelerations keep with the window: by
    its length, of what the film's longest one takes."""
    adaptive = plan.accelerations.adaptive
    tensors = 5 + (adaptive.kept_latents if adaptive else 0)
    places = stage.longest * render.latent_height * render.latent_width
    output = places * plan.geometry.latent_channels * 4 * tensors
    return output, plan.kept_bytes * stage.longest // plan.longest_frames
