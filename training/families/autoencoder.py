"""Trains a small video autoencoder of any of diffusers' classes on clips of the demo world.

As in `training.picture_vae`, the encoder's mean is decoded with a little Gaussian noise added, in
place of the KL term, and its latents' statistics are put into its last layer: every channel then
has mean 0 and deviation 1, and the scaling factor is 1.

Shapes: B batch, C channels, F frames, H rows, W columns.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLTemporalDecoder,
)
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training import world
from training.cpu import channels_last, norms_in_float32
from training.record import write_record
from training.vae import VaeRecipe, crops, mean_psnr_db, rate_at, to_signal

CHANNELS = 16
REPORTED_EVERY = 100


@dataclass(frozen=True, slots=True)
class Kind:
    """A class of diffusers, how small it is made, and how it is told a clip."""

    model: type[Any]
    config: dict[str, Any]
    time_scale: int  # pixel frames per latent frame, after the first
    space_scale: int

    def new(self, seed: int = 0) -> Any:
        """One with fresh weights."""
        torch.manual_seed(seed)
        return self.model(latent_channels=CHANNELS, scaling_factor=1.0, **self.config)

    def last_layer(self, vae: Any) -> nn.Module:
        """Of the encoder: what gives the mean."""
        if hasattr(vae, "quant_conv") and vae.quant_conv is not None:
            return vae.quant_conv
        return vae.encoder.conv_out.conv  # inside of a causal convolution

    def encode(self, vae: Any, x_BCFHW: Tensor) -> Tensor:
        """The posterior's mean."""
        if self.model is not AutoencoderKLTemporalDecoder:
            return vae.encode(x_BCFHW).latent_dist.mode()
        z_NCHW = vae.encode(x_BCFHW.transpose(1, 2).flatten(0, 1)).latent_dist.mode()
        return z_NCHW.unflatten(0, (len(x_BCFHW), -1)).transpose(1, 2)

    def decode(self, vae: Any, z_BCFHW: Tensor) -> Tensor:
        """Clips, BCFHW, not yet clipped to [-1, 1]."""
        if self.model is not AutoencoderKLTemporalDecoder:
            return vae.decode(z_BCFHW).sample
        frames = z_BCFHW.shape[2]
        z_NCHW = z_BCFHW.transpose(1, 2).flatten(0, 1)
        y_NCHW = vae.decode(z_NCHW, num_frames=frames).sample
        return y_NCHW.unflatten(0, (-1, frames)).transpose(1, 2)


KINDS: dict[str, Kind] = {
    "svd": Kind(
        AutoencoderKLTemporalDecoder,
        {
            # Of its last layer's 32 groups each needs two channels: a lone one loses its mean.
            "block_out_channels": (64, 64, 64, 64),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "layers_per_block": 1,
            "sample_size": 96,
        },
        1,
        8,
    ),
    "ltx": Kind(
        AutoencoderKLLTXVideo,
        {
            "block_out_channels": (64, 96),
            "down_block_types": ("LTXVideoDownBlock3D",) * 2,
            "decoder_block_out_channels": (64, 96),
            "layers_per_block": (1, 1, 1),
            "decoder_layers_per_block": (2, 1, 1),
            "spatio_temporal_scaling": (True, False),
            "decoder_spatio_temporal_scaling": (True, False),
            "decoder_inject_noise": (False, False, False),
            "downsample_type": ("conv", "conv"),
            "upsample_residual": (False, False),
            "upsample_factor": (1, 1),
            "patch_size": 4,
        },
        2,
        8,
    ),
    "cogvideox": Kind(
        AutoencoderKLCogVideoX,
        {
            "block_out_channels": (16, 32, 64),
            "down_block_types": ("CogVideoXDownBlock3D",) * 3,
            "up_block_types": ("CogVideoXUpBlock3D",) * 3,
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "temporal_compression_ratio": 2,
            "sample_height": 96,
            "sample_width": 96,
        },
        2,
        4,
    ),
    "hunyuan-video": Kind(
        AutoencoderKLHunyuanVideo,
        {
            "block_out_channels": (16, 32, 64),
            "down_block_types": ("HunyuanVideoDownBlock3D",) * 3,
            "up_block_types": ("HunyuanVideoUpBlock3D",) * 3,
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "spatial_compression_ratio": 4,
            "temporal_compression_ratio": 4,
        },
        4,
        4,
    ),
}


def reconstruction_loss(kind: Kind, vae: Any, x_BCFHW: Tensor, noise: float) -> Tensor:
    """L1 + 2 L2 between clips and their decoding from noisy latents of deviation 1."""
    z_BCFHW = kind.encode(vae, x_BCFHW)
    mean, std = z_BCFHW.mean((0, 2, 3, 4), True), z_BCFHW.std((0, 2, 3, 4), keepdim=True)
    z_BCFHW = (z_BCFHW - mean) / std
    error_BCFHW = kind.decode(vae, z_BCFHW + noise * torch.randn_like(z_BCFHW)).float() - x_BCFHW
    return error_BCFHW.abs().mean() + 2 * error_BCFHW.square().mean()


def clips(count: int, pixel_frames: int, seed: int) -> list[Tensor]:
    """Whole frames of so many scenes at any time of theirs, each BCFHW with a batch of one."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        times = world.frame_times(pixel_frames, start_s=float(rng.uniform(0, 20)))
        found.append(to_signal(world.render(world.sample_scene(rng), times))[None])
    return found


@torch.no_grad()
def fold_statistics(kind: Kind, vae: Any, pixel_frames: int, scenes: int = 48) -> None:
    """Let the encoder's last layer normalise its channels. The decoder was trained with that."""
    latents = [
        kind.encode(vae, each.to(vae.device)) for each in clips(scenes, pixel_frames, 20_000)
    ]
    z_BCFHW = torch.cat(latents)
    mean_C, std_C = z_BCFHW.mean((0, 2, 3, 4)), z_BCFHW.std((0, 2, 3, 4))
    layer = kind.last_layer(vae)
    layer.weight[:CHANNELS] /= std_C.view(-1, *[1] * (layer.weight.ndim - 1))
    layer.bias[:CHANNELS] = (layer.bias[:CHANNELS] - mean_C) / std_C


@torch.no_grad()
def psnr_db(kind: Kind, vae: Any, pixel_frames: int, scenes: int = 12) -> dict[str, float]:
    """Over held-out clips, as `training.vae.psnr_db` has it."""
    errors: list[float] = []
    for x_BCFHW in clips(scenes, pixel_frames, 10_000):
        y_BCFHW = kind.decode(vae, kind.encode(vae, x_BCFHW.to(vae.device))).float()
        squared_BCFHW = (y_BCFHW.clamp(-1, 1).cpu() - x_BCFHW).square()
        errors += squared_BCFHW.mean(dim=(0, 1, 3, 4)).tolist()
    return mean_psnr_db(errors)


def train(name: str, out: Path, recipe: VaeRecipe, steps: int, device: str = "cpu") -> None:
    """Train up to a number of steps; leaves the averaged, normalised weights and the state. Run
    again on the same folder it goes on; exits if that was begun otherwise."""
    kind = KINDS[name]
    origin = {"kind": name, "world": world.VERSION, **asdict(recipe)}
    vae = norms_in_float32(channels_last(kind.new(recipe.seed))).to(device)
    average = AveragedModel(vae, multi_avg_fn=get_ema_multi_avg_fn(recipe.average_decay))
    optimizer = torch.optim.AdamW(vae.parameters(), lr=recipe.peak_rate, weight_decay=1e-3)
    parts = {"vae": vae, "average": average, "optimizer": optimizer}
    past: dict[str, Any] = {"step": 0, "elapsed_s": 0.0, "progress": []}
    if (out / "state.pt").exists():
        state = torch.load(out / "state.pt", map_location="cpu", weights_only=True)
        if state["origin"] != origin:
            sys.exit(f"{out} was begun otherwise, {state['origin']}; train in another folder")
        past = {key: state[key] for key in past}
        for key, part in parts.items():
            part.load_state_dict(state[key])
    losses: list[float] = []
    for step in range(past["step"], steps):
        began_s = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step / steps, recipe)
        losses.append(_train_step(kind, vae, optimizer, recipe, step))
        average.update_parameters(vae)
        past["step"], past["elapsed_s"] = step + 1, past["elapsed_s"] + time.monotonic() - began_s
        if (step + 1) % REPORTED_EVERY == 0 or step + 1 == steps:
            loss = round(float(np.mean(losses[-REPORTED_EVERY:])), 4)
            past["progress"].append({"step": step + 1, "loss": loss})
            print(json.dumps(past["progress"][-1]), flush=True)
            _save(kind, out, average.module, past | {"origin": origin}, parts, recipe)


def _train_step(
    kind: Kind, vae: Any, optimizer: torch.optim.Optimizer, recipe: VaeRecipe, step: int
) -> float:
    """One step on fresh crops and noise, drawn from the seed and the step alone; the loss."""
    torch.manual_seed(recipe.seed * 1_000_003 + step)
    x_BCFHW = crops(np.random.default_rng((recipe.seed, 7, step)), recipe).to(vae.device)
    with torch.autocast(vae.device.type, dtype=torch.bfloat16):
        loss = reconstruction_loss(kind, vae, x_BCFHW, recipe.latent_noise)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def _save(
    kind: Kind,
    out: Path,
    average: Any,
    past: dict[str, Any],
    parts: dict[str, Any],
    recipe: VaeRecipe,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    normalised = copy.deepcopy(average)
    fold_statistics(kind, normalised, recipe.pixel_frames)
    normalised.save_pretrained(out)
    state = past | {key: part.state_dict() for key, part in parts.items()}
    torch.save(state, out / "state.pt.new")
    (out / "state.pt.new").replace(out / "state.pt")
    write_record(
        out,
        average.device,
        **past,
        psnr_db=psnr_db(kind, normalised, recipe.pixel_frames),
    )
