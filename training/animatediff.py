"""Trains a small AnimateDiff model of the demo world: a UNet of pictures first, then its motion.

    python -m training.picture_vae
    python -m training.reading --clip --out training/runs/clip
    python -m training.animatediff --frames 1 --init training/runs/clip --out training/runs/pictures
    python -m training.animatediff --init training/runs/pictures --out training/runs/animatediff
    python -m training.demo_model --kind animatediff --out FOLDER

For a twin that knows a pyramid the fourth with ``--stages 3 --coarse first``. With windows of one
frame the motion modules are left out, as they are where they add nothing.
Variance-preserving diffusion as DDIM renders it. The model predicts velocity: at the schedule's
end, which is nearly pure noise, the clip that a predicted noise stands for is that noise's error
times 150. Run it again on the same folder to go on.

Shapes: B batch, C latent channels, F frames, H rows, W columns, N text tokens, D width.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNetMotionModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from accel.pyramid import VariancePath
from training.cpu import channels_last, norms_in_float32
from training.draws import Draw
from training.latents import PictureCodec
from training.picture_vae import CHANNELS
from training.student import Student, velocity
from training.text import CLIP_TOKENS, new_clip_encoder, new_tokenizer
from training.trainer import Recipe, Trainer, noise_of, options_of

WINDOW_FRAMES = 16
PEAK_RATE, MOTION_PEAK_RATE = 1e-3, 3e-4  # motion at the former unlearns pictures
BATCH = 4  # windows of so many frames; of one frame, as many as take the same work
ARCHITECTURE = {
    "sample_size": 12,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "block_out_channels": (64, 128),
    "down_block_types": ("CrossAttnDownBlockMotion", "CrossAttnDownBlockMotion"),
    "up_block_types": ("CrossAttnUpBlockMotion", "CrossAttnUpBlockMotion"),
    "layers_per_block": 1,
    "norm_num_groups": 16,
    "cross_attention_dim": 128,
    "num_attention_heads": 4,
    "motion_num_attention_heads": 4,
    "motion_max_seq_length": 32,
    "use_motion_mid_block": True,
}
#: AnimateDiff's own schedule, but that its last time is nearly pure noise.
SCHEDULER = DDIMScheduler(
    beta_schedule="linear",
    beta_start=0.0001,
    beta_end=0.02,
    clip_sample=False,
    set_alpha_to_one=False,
    timestep_spacing="trailing",
    prediction_type="v_prediction",
)


class AnimateDiffStudent(Student):
    """A `UNetMotionModel`, and a CLIP encoder with the words of ``tokenizer``."""

    denoiser_name = "unet"
    path = VariancePath(SCHEDULER.alphas_cumprod.double().numpy())
    first_alone = False
    tokens_per_frame = 144
    text_tokens = long_text_tokens = CLIP_TOKENS

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.text_encoder = new_clip_encoder(len(tokenizer))
        self.unet = norms_in_float32(channels_last(UNetMotionModel(**ARCHITECTURE)))
        nn.init.zeros_(self.unet.conv_out.weight)
        for module in self._motion():
            nn.init.zeros_(module.proj_out.weight)
            nn.init.zeros_(module.proj_out.bias)

    def forward(self, x_BCFHW: Tensor, times_B: Tensor, *tokens: Tensor, stride: int) -> Tensor:
        """Positions count a window's own frames, whatever their ``stride``."""
        text_BND = self.text_encoder(tokens[0]).last_hidden_state
        text_BND = text_BND.repeat_interleave(x_BCFHW.shape[2], dim=0)
        # On a CPU the backward pass of the default, fused attention takes half of a step.
        on_cpu = x_BCFHW.device.type == "cpu"
        with sdpa_kernel(SDPBackend.MATH) if on_cpu else nullcontext():
            return self.unet(
                x_BCFHW, times_B.long(), encoder_hidden_states=text_BND, return_dict=False
            )[0]

    def target(self, drawn: Draw) -> Tensor:
        return velocity(drawn)

    def load(self, folder: Path, tokenizer: PreTrainedTokenizerFast) -> bool:
        """A folder without a UNet is one whose encoder has learned to read."""
        words = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer").get_vocab()
        if words != tokenizer.get_vocab():
            sys.exit(f"{folder} knows other words; begin anew: python -m training.reading --clip")
        if (folder / "unet").is_dir():
            trained = UNetMotionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
            self.unet.load_state_dict(trained.state_dict())
        encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", torch_dtype=torch.float32)
        self.text_encoder.load_state_dict(encoder.state_dict())
        return True

    def optimizers(self, rate: float) -> list[torch.optim.Optimizer]:
        weights = [p for p in self.parameters() if p.requires_grad]
        return [torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)]

    def prepare(self, frames: int) -> None:
        """Pictures teach nothing of motion: its modules, which add nothing yet, are passed by."""
        if frames == 1:
            for module in self._motion():
                module.requires_grad_(False)
                module.forward = _as_it_is

    def _motion(self) -> list[nn.Module]:
        return [
            module
            for name, module in self.unet.named_modules()
            if name.rpartition(".")[0].endswith("motion_modules")
        ]


def _as_it_is(hidden_states: Tensor, *args: object, **more: object) -> Tensor:
    return hidden_states


def new_model(seed: int = 0) -> tuple[PreTrainedTokenizerFast, AnimateDiffStudent]:
    """The tokenizer, and a text encoder and UNet with fresh weights."""
    torch.manual_seed(seed)
    tokenizer = new_tokenizer(CLIP_TOKENS)
    return tokenizer, AnimateDiffStudent(tokenizer)


def new_trainer(recipe: Recipe, vae: AutoencoderKL, out: Path, init: Path | None = None) -> Trainer:
    tokenizer, model = new_model(recipe.seed)
    return Trainer(recipe, model, tokenizer, PictureCodec(vae), out, init=init)


def new_recipe(frames: int, **changes: object) -> Recipe:
    """Of windows of so many frames. There are no short ones: pictures came before."""
    return Recipe(
        window_latent_frames=frames,
        short_windows=0.0,
        odd_shapes=0.0,
        tokens=144 * WINDOW_FRAMES * BATCH,
        least_clip_frames=2 * WINDOW_FRAMES - 1,
        peak_rate=PEAK_RATE if frames == 1 else MOTION_PEAK_RATE,
        **changes,
    )


def main() -> None:
    """Command line of AnimateDiff's training."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vae", type=Path, default=Path("training/runs/picture_vae"))
    parser.add_argument("--out", type=Path, default=Path("training/runs/animatediff"))
    parser.add_argument("--frames", type=int, default=WINDOW_FRAMES, help="of a window")
    options = options_of(parser)
    vae = AutoencoderKL.from_pretrained(options.vae).to(options.device).eval()
    recipe = new_recipe(options.frames, seed=options.seed, noise=noise_of(options))
    trainer = new_trainer(recipe, vae, options.out, options.init)
    trainer.resume()
    trainer.train(options.steps, options.keep_every)


if __name__ == "__main__":
    main()
