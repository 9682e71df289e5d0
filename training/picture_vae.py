"""Trains the autoencoder of single pictures, an ordinary `AutoencoderKL`, on the demo world.

    python -m training.picture_vae --out training/runs/picture_vae --steps 6000

The encoder's mean is decoded with a little Gaussian noise added, in place of the KL term. Its
latents' statistics are then put into its outermost layers, so that every channel has mean 0 and
deviation 1 with a scaling factor of 1. Run it again on the same folder to go on.

Shapes: N pictures, C channels, H rows, W columns.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training import world
from training.cpu import autocast, channels_last, norms_in_float32
from training.record import write_record
from training.vae import VaeRecipe, crops, mean_psnr_db, rate_at, to_signal

CHANNELS = 16
ARCHITECTURE = {
    "block_out_channels": (16, 32, 64, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "latent_channels": CHANNELS,
    "norm_num_groups": 8,
    "scaling_factor": 1.0,
    "sample_size": 96,
}
RECIPE = VaeRecipe(batch=24, pixel_frames=1)


def new_picture_vae(seed: int = 0) -> AutoencoderKL:
    """The autoencoder with fresh weights; 8 pixels a latent."""
    torch.manual_seed(seed)
    return AutoencoderKL(**ARCHITECTURE)


def reconstruction_loss(vae: AutoencoderKL, x_NCHW: Tensor, noise: float) -> Tensor:
    """L1 + 2 L2 between pictures and their decoding from noisy latents of deviation 1."""
    z_NCHW = vae.encode(x_NCHW).latent_dist.mode()
    z_NCHW = (z_NCHW - z_NCHW.mean((0, 2, 3), True)) / z_NCHW.std((0, 2, 3), keepdim=True)
    error_NCHW = vae.decode(z_NCHW + noise * torch.randn_like(z_NCHW)).sample.float() - x_NCHW
    return error_NCHW.abs().mean() + 2 * error_NCHW.square().mean()


@torch.no_grad()
def fold_statistics(vae: AutoencoderKL, scenes: int = 256, seed: int = 20_000) -> None:
    """Let the encoder's last layer normalise its channels. The decoder was trained with that."""
    rng = np.random.default_rng(seed)
    frames = np.stack([world.render(world.sample_scene(rng), _anytime(rng)) for _ in range(scenes)])
    parts = to_signal(frames)[:, :, 0].to(vae.device).split(32)
    z_NCHW = torch.cat([vae.encode(part).latent_dist.mode() for part in parts])
    mean_C, std_C = z_NCHW.mean((0, 2, 3)), z_NCHW.std((0, 2, 3))
    layer = vae.quant_conv
    layer.weight[:CHANNELS] /= std_C.view(-1, 1, 1, 1)
    layer.bias[:CHANNELS] = (layer.bias[:CHANNELS] - mean_C) / std_C


def _anytime(rng: np.random.Generator) -> np.ndarray:
    return world.frame_times(1, start_s=float(rng.uniform(0, 20)))


@torch.no_grad()
def psnr_db(vae: AutoencoderKL, scenes: int = 64, seed: int = 10_000) -> dict[str, float]:
    """Over held-out pictures, as `training.vae.psnr_db` has it."""
    rng = np.random.default_rng(seed)
    errors: list[float] = []
    for _ in range(scenes):
        x_NCHW = to_signal(world.render(world.sample_scene(rng), _anytime(rng)))[:, 0][None]
        y_NCHW = vae.decode(vae.encode(x_NCHW.to(vae.device)).latent_dist.mode()).sample
        errors.append((y_NCHW.clamp(-1, 1).cpu() - x_NCHW).square().mean().item())
    return mean_psnr_db(errors)


def train(out: Path, steps: int, seed: int = 0, device: str = "cpu") -> AutoencoderKL:
    """Train up to a number of steps; leaves the averaged, normalised weights and the state."""
    vae = norms_in_float32(channels_last(new_picture_vae(seed))).to(device)
    average = AveragedModel(vae, multi_avg_fn=get_ema_multi_avg_fn(RECIPE.average_decay))
    optimizer = torch.optim.AdamW(vae.parameters(), lr=RECIPE.peak_rate, weight_decay=1e-3)
    first, elapsed_s, kept = 0, 0.0, out / "state.pt"
    progress: list[dict[str, float]] = []
    if kept.exists():
        state = torch.load(kept, map_location="cpu", weights_only=True)
        first, elapsed_s = int(state["step"]), float(state["elapsed_s"])
        progress = state["progress"]
        vae.load_state_dict(state["vae"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
    losses: list[float] = []
    for step in range(first, steps):
        began_s = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step / steps, RECIPE)
        rng = np.random.default_rng((seed, 6, step))
        x_NCHW = crops(rng, RECIPE)[:, :, 0].to(device)
        with autocast(device):
            loss = reconstruction_loss(vae, x_NCHW, RECIPE.latent_noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(vae)
        losses.append(loss.item())
        elapsed_s += time.monotonic() - began_s
        if (step + 1) % 500 == 0 or step + 1 == steps:
            progress.append({"step": step + 1, "loss": round(float(np.mean(losses)), 4)})
            state = {
                "step": step + 1, "elapsed_s": elapsed_s, "progress": progress,
                "vae": vae.state_dict(), "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
            }  # fmt: skip
            _save(out, average.module, state)
            write_record(
                out, vae.device, step=step + 1, elapsed_s=elapsed_s, progress=progress, seed=seed,
                recipe=asdict(RECIPE),
            )  # fmt: skip
            print(json.dumps(progress[-1]), flush=True)
            losses.clear()
    return AutoencoderKL.from_pretrained(out)


def _save(out: Path, average: AutoencoderKL, state: dict[str, object]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    normalised = copy.deepcopy(average)
    fold_statistics(normalised)
    normalised.save_pretrained(out)
    torch.save(state, out / "state.pt.new")
    (out / "state.pt.new").replace(out / "state.pt")


def main() -> None:
    """Command line of the picture autoencoder's training."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("training/runs/picture_vae"))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    vae = train(options.out, options.steps, options.seed, options.device)
    print(json.dumps({"psnr_db": psnr_db(vae)}))


if __name__ == "__main__":
    main()
