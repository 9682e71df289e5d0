"""Text to video in LTX-Video's format: flow matching, one token for each latent place.

Shapes: B batch, C latent channels, F latent frames, H rows, W columns, N text tokens, S tokens of
the video.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from torch import Tensor
from transformers import AutoTokenizer, T5EncoderModel

from accel.pyramid import FlowPath
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
from training.text import new_t5_encoder

ARCHITECTURE = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "num_attention_heads": HEADS,
    "attention_head_dim": HEAD_WIDTH,
    "cross_attention_dim": HEADS * HEAD_WIDTH,
    "num_layers": 6,
    "caption_channels": TEXT_WIDTH,
}
#: As LTX-Video has it: the flow's shift grows with a window's places, from exp(0.95) at 1024.
SCHEDULER = {
    "use_dynamic_shifting": True,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
    "shift_terminal": 0.1,
}
SIDECAR = {
    "format": 1, "fps": FPS, "size": [96, 96], "window_latent_frames": 9,
    "overlap_latent_frames": 3, "steps": 30, "guidance": 4.0, "text_tokens": TEXT_TOKENS,
}  # fmt: skip


class LTXStudent(T5Reader, TransformerStudent):
    """An `LTXVideoTransformer3DModel`, and a T5 encoder."""

    path = FlowPath()

    def __init__(self, num_words: int) -> None:
        super().__init__()
        self.text_encoder = new_t5_encoder(num_words, TEXT_WIDTH)
        self.transformer = LTXVideoTransformer3DModel(**ARCHITECTURE)
        self.start_silent()

    def forward(self, x_BCFHW: Tensor, times_B: Tensor, *tokens: Tensor, stride: int) -> Tensor:
        ids_BN, mask_BN = tokens
        size = frames, height, width = x_BCFHW.shape[2:]
        kind = KINDS["ltx"]
        with unfused_attention(x_BCFHW):
            told_BSC = self.transformer(
                hidden_states=x_BCFHW.permute(0, 2, 3, 4, 1).flatten(1, 3),
                encoder_hidden_states=self.text_encoder(ids_BN).last_hidden_state,
                timestep=times_B * 1000,
                encoder_attention_mask=mask_BN.to(x_BCFHW.dtype),
                num_frames=frames,
                height=height,
                width=width,
                rope_interpolation_scale=(
                    kind.time_scale / FPS, kind.space_scale, kind.space_scale
                ),
                return_dict=False,
            )[0]  # fmt: skip
        return told_BSC.unflatten(1, size).permute(0, 4, 1, 2, 3)

    def target(self, drawn: Draw) -> Tensor:
        return drawn.noise_BCFHW - drawn.clean_BCFHW


def pipeline(run: Path, vae: Path) -> LTXPipeline:
    """Of a training's folder and its autoencoder's."""
    return LTXPipeline(
        tokenizer=AutoTokenizer.from_pretrained(run / "tokenizer"),
        text_encoder=T5EncoderModel.from_pretrained(run / "text_encoder"),
        transformer=LTXVideoTransformer3DModel.from_pretrained(
            run / "transformer", torch_dtype=torch.bfloat16
        ),
        vae=AutoencoderKLLTXVideo.from_pretrained(vae),
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
    )
