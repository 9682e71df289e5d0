"""A tiny HunyuanVideo folder with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
)

from jobs.units import ShotRender
from tests.workers.tiny import CHANNELS, tiny_shot

SCALE_PX = 8  # pixels per latent pixel
WORDS = ["a", "red", "ball", "rolls", "blurred", "blue", "kite"]


def tiny_transformer(guidance_embeds: bool, layers: int = 2) -> HunyuanVideoTransformer3DModel:
    """Half of the layers, and what is over, have text and video as one stream."""
    torch.manual_seed(1)
    return HunyuanVideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=layers // 2,
        num_single_layers=layers - layers // 2,
        num_refiner_layers=1,
        guidance_embeds=guidance_embeds,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 6, 6),
    ).eval()


def tiny_vae() -> AutoencoderKLHunyuanVideo:
    torch.manual_seed(2)
    return AutoencoderKLHunyuanVideo(
        latent_channels=CHANNELS,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.5,
    ).eval()


def tiny_llama(words: int) -> LlamaModel:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
    )
    return LlamaModel(config).eval()


def tiny_clip(words: int) -> CLIPTextModel:
    torch.manual_seed(4)
    config = CLIPTextConfig(
        vocab_size=words,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=77,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
    )
    return CLIPTextModel(config).eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word or sign, so that the template has about as many as Llama reads of it."""
    signs = pre_tokenizers.Whitespace()
    template = [word for word, _ in signs.pre_tokenize_str(DEFAULT_PROMPT_TEMPLATE["template"])]
    names = dict.fromkeys(["<pad>", "</s>", "<s>", "<unk>", *template, *WORDS])
    vocabulary = {token: number for number, token in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = signs
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>",
        unk_token="<unk>",
        padding_side="right",
    )


def write_tiny_hunyuan_video(folder: Path, guidance_embeds: bool = True, layers: int = 2) -> Path:
    """Write a complete diffusers folder; returns it."""
    tokenizer = tiny_tokenizer()
    pipeline = HunyuanVideoPipeline(
        text_encoder=tiny_llama(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=tiny_transformer(guidance_embeds, layers),
        vae=tiny_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=tiny_clip(len(tokenizer)),
        tokenizer_2=tiny_tokenizer(),
    )
    pipeline.save_pretrained(folder)
    return folder


def hunyuan_shot(**changes: object) -> ShotRender:
    """A shot of 5 latent frames, 32x32 px, 4 steps."""
    return tiny_shot(
        **{
            "scheduler": "auto",
            "guidance": (6.0,),
            "stage_steps": (4,),
            "latent_frames": 5,
            "latent_height": 4,
            "latent_width": 4,
            "pixel_frames": 17,
            "text_tokens": 24,
        }
        | changes
    )
