"""Text to video in CogVideoX's format, of the kind of 5b: rotary positions, velocity.

Shapes: B batch, C latent channels, F latent frames, H rows, W columns, N text tokens.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from torch import Tensor
from transformers import AutoTokenizer, T5EncoderModel

from accel.pyramid import VariancePath
from training.draws import Draw
from training.families.autoencoder import CHANNELS, KINDS
from training.families.student import (
    FPS,
    HEAD_WIDTH,
    HEADS,
    TEXT_TOKENS,
    TEXT_WIDTH,
    T5Reader,
    TransformerStudent,
    unfused_attention,
)
from training.student import velocity
from training.text import new_t5_encoder
from workers.families.cogvideox import rotary_positions

ARCHITECTURE = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "num_attention_heads": HEADS,
    "attention_head_dim": HEAD_WIDTH,
    "time_embed_dim": 128,
    "text_embed_dim": TEXT_WIDTH,
    "num_layers": 6,
    "sample_width": 24,
    "sample_height": 24,
    "sample_frames": 17,
    "temporal_compression_ratio": KINDS["cogvideox"].time_scale,
    "max_text_seq_length": TEXT_TOKENS,
    "use_rotary_positional_embeddings": True,
}
#: As CogVideoX has it; its last time is pure noise.
SCHEDULER = CogVideoXDDIMScheduler(
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.012,
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
    snr_shift_scale=1.0,
    timestep_spacing="trailing",
    clip_sample=False,
    set_alpha_to_one=True,
)
SIDECAR = {
    "format": 1, "fps": FPS, "size": [96, 96], "window_latent_frames": 9,
    "overlap_latent_frames": 3, "steps": 30, "guidance": 4.0,
}  # fmt: skip


class CogVideoXStudent(T5Reader, TransformerStudent):
    """A `CogVideoXTransformer3DModel`, and a T5 encoder."""

    path = VariancePath(SCHEDULER.alphas_cumprod.double().numpy())

    def __init__(self, num_words: int) -> None:
        super().__init__()
        self.text_encoder = new_t5_encoder(num_words, TEXT_WIDTH)
        self.transformer = CogVideoXTransformer3DModel(**ARCHITECTURE)
        self.start_silent()

    def forward(self, x_BCFHW: Tensor, times_B: Tensor, *tokens: Tensor, stride: int) -> Tensor:
        with unfused_attention(x_BCFHW):
            told_BFCHW = self.transformer(
                hidden_states=x_BCFHW.transpose(1, 2),
                encoder_hidden_states=self.text_encoder(tokens[0]).last_hidden_state,
                timestep=times_B.long(),
                image_rotary_emb=rotary_positions(self.transformer, *x_BCFHW.shape[2:]),
                return_dict=False,
            )[0]
        return told_BFCHW.transpose(1, 2)

    def target(self, drawn: Draw) -> Tensor:
        return velocity(drawn)


def pipeline(run: Path, vae: Path) -> CogVideoXPipeline:
    """Of a training's folder and its autoencoder's."""
    return CogVideoXPipeline(
        tokenizer=AutoTokenizer.from_pretrained(run / "tokenizer"),
        text_encoder=T5EncoderModel.from_pretrained(run / "text_encoder"),
        vae=AutoencoderKLCogVideoX.from_pretrained(vae),
        transformer=CogVideoXTransformer3DModel.from_pretrained(
            run / "transformer", torch_dtype=torch.bfloat16
        ),
        scheduler=SCHEDULER,
    )
