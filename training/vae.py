"""Trains the demo's video autoencoder, an ordinary `AutoencoderKLWan`, on clips of the demo world.

    python -m training.vae --out training/runs/vae --steps 5000

The encoder's mean is decoded with a little Gaussian noise added, in place of the KL term: it keeps
the latent space smooth and bounded in a single pass. Run it again on the same folder to go on.

Shapes: B batch, C channels, F frames, H rows, W columns.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from training import whole_clip, world
from training.cpu import autocast, channels_last
from training.record import write_record

ARCHITECTURE = {
    "base_dim": 16,
    "z_dim": 8,
    "dim_mult": [1, 2],
    "temperal_downsample": [True],
    "num_res_blocks": 1,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 4,
    "scale_factor_temporal": 2,
}


#: Steps after which a training says how it goes, and keeps its state.
REPORTED_EVERY = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeRecipe:
    """What the autoencoder's training depends on."""

    seed: int = 0
    batch: int = 4
    pixel_frames: int = 9
    crop_px: int = 64
    peak_rate: float = 1.5e-3
    final_rate: float = 1e-5
    warmup: float = 0.02
    latent_noise: float = 0.05
    late_starts: float = 0.25
    average_decay: float = 0.998


def new_vae(seed: int = 0) -> AutoencoderKLWan:
    """The demo's autoencoder with fresh weights and identity latent statistics."""
    torch.manual_seed(seed)
    z_dim = ARCHITECTURE["z_dim"]
    return AutoencoderKLWan(**ARCHITECTURE, latents_mean=[0.0] * z_dim, latents_std=[1.0] * z_dim)


def to_signal(frames: np.ndarray) -> Tensor:
    """8-bit frames (B)FHWC to (B)CFHW in [-1, 1]."""
    return torch.from_numpy(np.moveaxis(frames, -1, -4).astype(np.float32) / 127.5 - 1)


def crops(rng: np.random.Generator, recipe: VaeRecipe) -> Tensor:
    """A batch of random crops of random scenes, BCFHW."""
    batch = []
    for _ in range(recipe.batch):
        start_s = float(rng.uniform(0, 20))
        frames = world.render(
            world.sample_scene(rng), world.frame_times(recipe.pixel_frames, start_s=start_s)
        )
        top, left = rng.integers(0, frames.shape[1] - recipe.crop_px + 1, size=2)
        batch.append(frames[:, top : top + recipe.crop_px, left : left + recipe.crop_px])
    return to_signal(np.stack(batch))


def reconstruction_loss(
    vae: AutoencoderKLWan, x_BCFHW: Tensor, noise: float, late_start: bool
) -> Tensor:
    """L1 + 2 L2 between a clip and its decoding from noisy latents; within `whole_clips` only.

    With a late start the decoder begins at the second latent frame, as it does when a film is
    decoded in pieces: its first output is then the later of the two frames which that one holds.
    """
    z_BCFHW = whole_clip.encode_mean(vae, x_BCFHW)
    if late_start:
        z_BCFHW, x_BCFHW = z_BCFHW[:, :, 1:], x_BCFHW[:, :, 2:]
    y_BCFHW = whole_clip.decode(vae, z_BCFHW + noise * torch.randn_like(z_BCFHW))
    error_BCFHW = y_BCFHW.float() - x_BCFHW
    return error_BCFHW.abs().mean() + 2 * error_BCFHW.square().mean()


@torch.no_grad()
def encode(vae: AutoencoderKLWan, x_BCFHW: Tensor) -> Tensor:
    """Clips in [-1, 1] to raw latents, each clip in one pass."""
    with whole_clip.whole_clips(vae):
        return whole_clip.encode_mean(vae, x_BCFHW)


@torch.no_grad()
def psnr_db(vae: AutoencoderKLWan, clips: int = 4, seed: int = 10_000) -> dict[str, float]:
    """Peak signal to noise ratio over whole held-out clips of 17 frames, from their latents."""
    rng = np.random.default_rng(seed)
    errors: list[float] = []
    for _ in range(clips):
        frames = world.render(world.sample_scene(rng), world.frame_times(17))
        x_BCFHW = to_signal(frames)[None].to(vae.device)
        with whole_clip.whole_clips(vae):
            y_BCFHW = whole_clip.decode(vae, whole_clip.encode_mean(vae, x_BCFHW))
        squared_BCFHW = (y_BCFHW.float().clamp(-1, 1) - x_BCFHW).square()
        errors += squared_BCFHW.mean(dim=(0, 1, 3, 4)).tolist()
    return mean_psnr_db(errors)


def mean_psnr_db(errors: list[float]) -> dict[str, float]:
    """Of the mean squared errors of frames in [-1, 1]: the mean of their ratios, as autoencoders'
    usually are given, and that of their mean error."""
    of_frames = [10 * math.log10(4 / error) for error in errors]
    return {
        "mean_of_frames": round(float(np.mean(of_frames)), 2),
        "of_mean_error": round(10 * math.log10(4 / float(np.mean(errors))), 2),
    }


@torch.no_grad()
def measure_latents(vae: AutoencoderKLWan, clips: int = 64, seed: int = 20_000) -> None:
    """Write the per-channel mean and deviation of the latents into the autoencoder's config."""
    rng = np.random.default_rng(seed)
    per_channel = []
    for _ in range(clips):
        frames = world.render(world.sample_scene(rng), world.frame_times(5))
        with autocast(vae.device):
            z_BCFHW = encode(vae, to_signal(frames)[None].to(vae.device))
        per_channel.append(z_BCFHW.float().transpose(0, 1).flatten(1).cpu())
    z_CN = torch.cat(per_channel, dim=1)
    vae.register_to_config(
        latents_mean=[round(v, 5) for v in z_CN.mean(dim=1).tolist()],
        latents_std=[round(v, 5) for v in z_CN.std(dim=1).tolist()],
    )


def rate_at(progress: float, recipe: VaeRecipe) -> float:
    """The learning rate at a progress of 0 to 1: a short rise, then a straight fall."""
    if progress < recipe.warmup:
        return recipe.peak_rate * max(progress / recipe.warmup, 0.01)
    left = (1 - progress) / (1 - recipe.warmup)
    return recipe.final_rate + (recipe.peak_rate - recipe.final_rate) * max(left, 0.0)


def train(
    out: Path,
    recipe: VaeRecipe,
    steps: int,
    device: str = "cpu",
    decoder_only: bool = False,
    init: Path | None = None,
) -> AutoencoderKLWan:
    """Train up to a number of steps, and leave the averaged weights and the state in `out`.

    `decoder_only` sharpens the pictures of a finished encoder, whose latents then stay the same.
    `init` is an autoencoder's folder to take the first weights from, where `out` has no state.
    """
    fresh = new_vae(recipe.seed) if init is None else AutoencoderKLWan.from_pretrained(init)
    vae = channels_last(fresh).to(device)
    for part in (vae.encoder, vae.quant_conv):
        part.requires_grad_(not decoder_only)
    average = torch.optim.swa_utils.AveragedModel(
        vae, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(recipe.average_decay)
    )
    optimizer = torch.optim.AdamW(vae.parameters(), lr=recipe.peak_rate, weight_decay=1e-3)
    past = _resume(out / "state.pt", vae, average, optimizer)
    first, elapsed_s, progress = past["step"], past["elapsed_s"], past["progress"]
    if decoder_only and not past["decoder_only"]:
        vae.load_state_dict(average.module.state_dict())
    losses: list[float] = []
    for step in range(first, steps):
        began_s = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step / steps, recipe)
        losses.append(_train_step(vae, optimizer, recipe, step))
        average.update_parameters(vae)
        elapsed_s += time.monotonic() - began_s
        if (step + 1) % REPORTED_EVERY == 0:
            progress.append(_report(step + 1, losses[-REPORTED_EVERY:], average.module))
            past |= {"step": step + 1, "elapsed_s": elapsed_s, "decoder_only": decoder_only}
            _save(out, past, vae, average, optimizer)
    past |= {"step": max(first, steps), "elapsed_s": elapsed_s, "decoder_only": decoder_only}
    _save(out, past, vae, average, optimizer)
    return average.module


def _train_step(
    vae: AutoencoderKLWan, optimizer: torch.optim.Optimizer, recipe: VaeRecipe, step: int
) -> float:
    """One step on fresh crops and noise, drawn from the seed and the step alone; the loss."""
    torch.manual_seed(recipe.seed * 1_000_003 + step)
    rng = np.random.default_rng((recipe.seed, 1, step))
    x_BCFHW = crops(rng, recipe).to(vae.device)
    with autocast(vae.device), whole_clip.whole_clips(vae):
        late_start = rng.uniform() < recipe.late_starts
        loss = reconstruction_loss(vae, x_BCFHW, recipe.latent_noise, late_start)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def _report(step: int, losses: list[float], vae: AutoencoderKLWan) -> dict[str, Any]:
    line: dict[str, Any] = {"step": step, "loss": round(float(np.mean(losses)), 4)}
    with autocast(vae.device):
        line["psnr_db"] = psnr_db(vae)
    print(json.dumps(line), flush=True)
    return line


def _save(
    out: Path,
    past: dict[str, Any],
    vae: AutoencoderKLWan,
    average: torch.optim.swa_utils.AveragedModel,
    optimizer: torch.optim.Optimizer,
) -> None:
    """The latents keep their statistics where only the decoder learns: a denoiser may know them."""
    out.mkdir(parents=True, exist_ok=True)
    if not past["decoder_only"]:
        measure_latents(average.module)
    average.module.save_pretrained(out)
    state = {
        **past,
        "vae": vae.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(state, out / "state.pt.new")
    (out / "state.pt.new").replace(out / "state.pt")
    write_record(out, vae.device, **past)


def _resume(
    path: Path,
    vae: AutoencoderKLWan,
    average: torch.optim.swa_utils.AveragedModel,
    optimizer: torch.optim.Optimizer,
) -> dict[str, Any]:
    """The step to go on with, the seconds that it took to get there, how it went, and whether
    only the decoder learned."""
    past = {"step": 0, "elapsed_s": 0.0, "progress": [], "decoder_only": False}
    if not path.exists():
        return past
    state = torch.load(path, map_location="cpu", weights_only=True)
    vae.load_state_dict(state["vae"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    return {name: state.get(name, value) for name, value in past.items()}


def main() -> None:
    """Command line of the autoencoder's training."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("training/runs/vae"))
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--decoder-only", action="store_true")
    parser.add_argument("--init", type=Path, help="a trained autoencoder's folder to go on from")
    parser.add_argument("--rate", type=float, default=VaeRecipe().peak_rate)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    recipe = VaeRecipe(seed=options.seed, peak_rate=options.rate)
    vae = train(
        options.out, recipe, options.steps, options.device, options.decoder_only, options.init
    )
    print(json.dumps({"psnr_db": psnr_db(vae, clips=24)}))


if __name__ == "__main__":
    main()
