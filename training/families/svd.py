"""Image to video in Stable Video Diffusion's format: the image is a window's first frame.

Its CLIP sees nothing (its projection is zero): what the image shows, the UNet sees in its latents,
which lie beside every noisy frame. A render adds a little noise to the image, 2.5 of 255; training
shows it without. Where a caption is dropped, for guidance, so is the image.

Shapes: B batch, C latent channels, F frames, H rows, W columns.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerFast,
)

from training.cpu import channels_last, norms_in_float32
from training.draws import Draw
from training.edm import EdmPath
from training.families.autoencoder import CHANNELS
from training.families.student import FPS, TEXT_TOKENS, TEXT_WIDTH, FamilyStudent, unfused_attention
from training.student import velocity
from workers.families.svd import MOTION_BUCKET_ID, NOISE_AUG_STRENGTH

FRAMES = 14
ARCHITECTURE = {
    "sample_size": 12,
    "in_channels": 2 * CHANNELS,
    "out_channels": CHANNELS,
    "block_out_channels": (64, 128),
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal",) * 2,
    "up_block_types": ("CrossAttnUpBlockSpatioTemporal",) * 2,
    "addition_time_embed_dim": 32,
    "projection_class_embeddings_input_dim": 96,
    "layers_per_block": 1,
    "cross_attention_dim": TEXT_WIDTH,
    "num_attention_heads": 4,
    "num_frames": FRAMES,
}
#: As stabilityai/stable-video-diffusion-img2vid has it.
SCHEDULER = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}
SIDECAR = {"format": 1, "fps": FPS, "size": [96, 96], "steps": 25, "guidance": 3.0}


def blind_encoder() -> CLIPVisionModelWithProjection:
    """Says the same of every image: zeros."""
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, projection_dim=TEXT_WIDTH, num_hidden_layers=1,
        num_attention_heads=2, image_size=224, patch_size=56,
    )  # fmt: skip
    encoder = CLIPVisionModelWithProjection(config)
    nn.init.zeros_(encoder.visual_projection.weight)
    return encoder


class SVDStudent(FamilyStudent):
    """A `UNetSpatioTemporalConditionModel`."""

    denoiser_name = "unet"
    encoder_names = ("image_encoder",)
    path = EdmPath()
    first_alone = False
    tokens_per_frame = 144
    text_tokens = long_text_tokens = TEXT_TOKENS

    def __init__(self, num_words: int) -> None:
        super().__init__()
        self.image_encoder = blind_encoder()
        unet = UNetSpatioTemporalConditionModel(**ARCHITECTURE)
        self.unet = norms_in_float32(channels_last(unet))
        nn.init.zeros_(self.unet.conv_out.weight)

    def learn_to_read(self, tokenizer: PreTrainedTokenizerFast, steps: int, seed: int) -> None:
        """It reads no text."""

    def seen(self, drawn: Draw) -> Tensor:
        """Beside each noisy frame the window's first one, B2CFHW."""
        image_BCFHW = drawn.clean_BCFHW[:, :, :1].expand_as(drawn.clean_BCFHW)
        return torch.cat([drawn.noisy_BCFHW, image_BCFHW], dim=1)

    def forward(self, x_BCFHW: Tensor, times_B: Tensor, *tokens: Tensor, stride: int) -> Tensor:
        told_B = tokens[1].sum(1) > 1  # a dropped caption has its end alone
        noisy_BCFHW, image_BCFHW = x_BCFHW.chunk(2, dim=1)
        image_BCFHW = image_BCFHW * told_B.view(-1, 1, 1, 1, 1)
        ids_B3 = torch.tensor([[FPS - 1, MOTION_BUCKET_ID, NOISE_AUG_STRENGTH]])
        with unfused_attention(x_BCFHW):
            told_BFCHW = self.unet(
                torch.cat([noisy_BCFHW, image_BCFHW], dim=1).transpose(1, 2),
                times_B,
                encoder_hidden_states=x_BCFHW.new_zeros(len(x_BCFHW), 1, TEXT_WIDTH),
                added_time_ids=ids_B3.to(x_BCFHW).repeat(len(x_BCFHW), 1),
                return_dict=False,
            )[0]
        return told_BFCHW.transpose(1, 2)

    def target(self, drawn: Draw) -> Tensor:
        return velocity(drawn)

    def optimizers(self, rate: float) -> list[Optimizer]:
        weights = [p for p in self.parameters() if p.requires_grad]
        return [torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)]


def pipeline(run: Path, vae: Path) -> StableVideoDiffusionPipeline:
    """Of a training's folder and its autoencoder's."""
    return StableVideoDiffusionPipeline(
        vae=AutoencoderKLTemporalDecoder.from_pretrained(vae),
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(run / "image_encoder"),
        unet=UNetSpatioTemporalConditionModel.from_pretrained(
            run / "unet", torch_dtype=torch.bfloat16
        ),
        scheduler=EulerDiscreteScheduler(**SCHEDULER),
        feature_extractor=CLIPImageProcessor(),
    )
