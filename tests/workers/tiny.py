"""A tiny Wan folder with random weights, and what a test needs to render with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from jobs.arrays import Bundle
from jobs.units import DecodeTask, EncodeTask, ShotRender, StepTask, Unit, Window
from workers.setup import WorkerSetup
from workers.worker import Worker

CHANNELS = 4
FLOW_SHIFT = 3.0

#: VAE configs: one spatial doubling and one in time, and Wan 2.1's own layout with thin layers.
SMALL_VAE = {"dim_mult": [1, 2], "temperal_downsample": [True], "num_res_blocks": 1}
WAN_VAE = {"dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True]}
PATCHED_VAE = SMALL_VAE | {"patch_size": 2, "in_channels": 12, "out_channels": 12}
RESIDUAL_VAE = SMALL_VAE | {"dim_mult": [1, 1], "is_residual": True}
TI2V_VAE = PATCHED_VAE | RESIDUAL_VAE  # of Wan 2.2's 5B


def tiny_vae(config: Mapping[str, object] = SMALL_VAE, channels: int = CHANNELS):
    """A random AutoencoderKLWan in float32."""
    torch.manual_seed(2)
    doublings, scale = config["temperal_downsample"], 2 ** (len(config["dim_mult"]) - 1)
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=channels,
        latents_mean=[0.1 * i for i in range(channels)],
        latents_std=[1.0 + 0.3 * i for i in range(channels)],
        scale_factor_temporal=2 ** sum(doublings),
        scale_factor_spatial=scale * config.get("patch_size", 1),
        **config,
    ).eval()


def tiny_transformer(layers: int = 2) -> WanTransformer3DModel:
    torch.manual_seed(1)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=64,
    ).eval()


def tiny_text_encoder() -> UMT5EncoderModel:
    torch.manual_seed(3)
    config = UMT5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0
    )
    return UMT5EncoderModel(config).eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per letter; ends with </s> as T5's does."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789 ,.-"
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", *letters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def write_tiny_wan(
    folder: Path, layers: int = 2, vae: Mapping[str, object] = SMALL_VAE, **marks: bool
) -> Path:
    """Write a complete diffusers folder; returns it. ``marks``: of its model_index.json."""
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT
    )
    pipeline = WanPipeline(
        tokenizer=tiny_tokenizer(),
        text_encoder=tiny_text_encoder(),
        vae=tiny_vae(vae),
        scheduler=scheduler,
        transformer=tiny_transformer(layers),
        **marks,
    )
    pipeline.save_pretrained(folder)
    return folder


def write_tiny_wan_ti2v(folder: Path) -> Path:
    """The same of Wan 2.2's 5B."""
    return write_tiny_wan(folder, vae=TI2V_VAE, expand_timesteps=True)


def tiny_shot(**changes: object) -> ShotRender:
    """A shot of 9 latent frames, 32x32 px, 6 steps, guided."""
    shot = ShotRender(
        prompt="a red ball rolls",
        negative_prompt="blurred",
        seed=7,
        guidance=(5.0,),
        stage_steps=(6,),
        stage_positions=False,
        scheduler="unipc",
        flow_shift=None,
        text_tokens=24,
        latent_frames=9,
        latent_height=16,
        latent_width=16,
        pixel_frames=17,
        fps=8,
    )
    return dataclasses.replace(shot, **changes)


def tiny_worker(folder: Path, **changes: object) -> Worker:
    setup = WorkerSetup(worker="w0", model=str(folder), threads=1)
    return Worker(dataclasses.replace(setup, **changes))


def encode(worker: Worker, shot: ShotRender) -> Bundle:
    return worker.run(EncodeTask(unit=Unit("encode", 0), attempt=1, shot=shot), [])[1]


def piece_task(shot: ShotRender, start: int, stop: int, warm_start: int = 0) -> DecodeTask:
    """For a family, which reads no windows."""
    return DecodeTask(
        unit=Unit("decode", 0),
        attempt=1,
        shot=shot,
        start=start,
        stop=stop,
        warm_start=warm_start,
        windows=(),
        owned=(),
        codec="ffv1",
        quality=0,
    )


def step_task(shot: ShotRender, windows: Sequence[Window], index: int, step: int) -> StepTask:
    window = windows[index]
    return StepTask(
        unit=Unit("step", 0, index=index, step=step),
        attempt=1,
        shot=shot,
        window=window,
        covering=tuple(w for w in windows if w.overlaps(window)),
    )


def run_step(
    worker: Worker, task: StepTask, embeddings: Bundle, done: Mapping[tuple[int, int], Bundle]
) -> Bundle:
    """Run a step with its inputs taken from ``done``, keyed by (window, step)."""
    step = task.unit.step
    inputs = [embeddings] if step < task.shot.steps else []
    if step > 0:
        inputs += [done[w.index, step - 1] for w in task.covering]
    return worker.run(task, inputs)[1]


def render_windows(
    worker: Worker, shot: ShotRender, windows: Sequence[Window], *, backwards: bool = False
) -> dict[tuple[int, int], Bundle]:
    """All step units of a shot; ``backwards`` takes the windows of each step in reverse."""
    embeddings = encode(worker, shot)
    done: dict[tuple[int, int], Bundle] = {}
    for step in range(shot.steps + 1):
        for window in reversed(windows) if backwards else windows:
            task = step_task(shot, windows, window.index, step)
            done[window.index, step] = run_step(worker, task, embeddings, done)
    return done
