"""HunyuanVideo, text to video, over diffusers' components. Never calls a pipeline's ``__call__``.

The arithmetic, and its order, is that of ``HunyuanVideoPipeline.__call__``: tests compare bit for
bit. A model with embedded guidance is told it and runs once; any other runs for both branches.

Decoding. The decoder normalises and attends over all frames that it is given, so what it gives for
one depends on the others. Diffusers decodes a shot of more than a few latent frames by tiles in
time (``_temporal_tiled_decode``), whose places count from the shot's start: tile k takes 5 latent
frames from 3 k, and its first four pixel frames are blended with the last of the tile before. That
rule is kept here. So a piece that begins where a tile's own frames do has the bits of the whole,
given the tile before it and one latent frame behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from torch.overrides import TorchFunctionMode

from jobs.errors import BadJob
from jobs.units import DecodeTask, ShotRender
from workers.decoding import to_rgb8
from workers.families.family import BranchContext
from workers.families.folder import FolderModel, Parts
from workers.schedulers import RangeStepper

#: What the transformer is told of a prompt, and how the pipeline's ``encode_prompt`` orders it.
_TOLD = ("", "pooled_", "mask_")

_TOKENIZERS = (
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "CLIPTokenizer",
    "CLIPTokenizerFast",
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
)


class HunyuanVideoFamily(FolderModel):
    """One HunyuanVideo folder on one device."""

    name = "hunyuan-video"
    pipeline = HunyuanVideoPipeline
    denoiser_kind = HunyuanVideoTransformer3DModel
    vae_kind = AutoencoderKLHunyuanVideo
    even_sigmas = True
    parts: ClassVar[Parts] = {
        "transformer": ("HunyuanVideoTransformer3DModel",),
        "vae": ("AutoencoderKLHunyuanVideo",),
        "text_encoder": ("LlamaModel",),
        "text_encoder_2": ("CLIPTextModel",),
        "tokenizer": _TOKENIZERS,
        "tokenizer_2": _TOKENIZERS,
    }

    def embed(self, pipeline: Any, shot: ShotRender) -> dict[str, torch.Tensor]:
        """``cond``: Llama's [1, text_tokens, text_dim]; ``pooled_cond``: CLIP's [1, width];
        ``mask_cond``: [1, text_tokens]. And of ``uncond`` where both branches run."""
        prompts = {"cond": shot.prompt}
        if self.guided(shot):
            prompts["uncond"] = shot.negative_prompt
        embeddings = {}
        for name, prompt in prompts.items():
            _check_length(pipeline.tokenizer, prompt, shot.text_tokens)
            told = pipeline.encode_prompt(
                prompt, device=self.encodes_on, max_sequence_length=shot.text_tokens
            )
            embeddings |= {kind + name: each for kind, each in zip(_TOLD, told, strict=True)}
        return embeddings

    @torch.no_grad()
    def predict(
        self,
        shot: ShotRender,
        latents: torch.Tensor,
        stepper: RangeStepper,
        step: int,
        embeddings: Mapping[str, torch.Tensor],
        branch: BranchContext,
    ) -> torch.Tensor:
        self.free_text()
        model = self.denoiser
        timestep = stepper.timesteps[step].expand(latents.shape[0]).to(latents.dtype)
        guidance = torch.tensor([shot.guidance[0]], dtype=model.dtype, device=latents.device)

        def forward(name: Any) -> torch.Tensor:
            with branch(name), model.cache_context(name):
                return model(
                    hidden_states=latents.to(model.dtype),
                    timestep=timestep,
                    encoder_hidden_states=embeddings[name],
                    encoder_attention_mask=embeddings[f"mask_{name}"],
                    pooled_projections=embeddings[f"pooled_{name}"],
                    guidance=guidance * 1000.0,
                    attention_kwargs=None,
                    return_dict=False,
                )[0]

        cond = forward("cond")
        if not self.guided(shot):
            return cond
        uncond = forward("uncond")
        return uncond + shot.guidance[0] * (cond - uncond)

    @torch.no_grad()
    def decode(self, task: DecodeTask, latents: torch.Tensor) -> np.ndarray:
        self.free_text()
        vae = self.vae
        scaled = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor
        with NativePadding():
            if task.warm_start == 0 and task.shot.latent_frames == latents.shape[2]:
                pixels = vae.decode(scaled, return_dict=False)[0]
                return to_rgb8(pixels[:, :, _pixel_frame(vae, task.start) :])
            return to_rgb8(decode_tiles(vae, scaled, task.warm_start, task.start))


#: More than fit into 32 bits are too many for CUDA's kernel of padding.
KERNEL_ELEMENTS = 2**31


class NativePadding(TorchFunctionMode):
    """Pads by torch's own kernel. On a GPU that is told to be deterministic torch pads by repeated
    frames otherwise, by indices and in float32, for the sake of a gradient that decoding has not:
    each convolution of the decoder would hold twice what it takes. The values are the same."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        repeats = func is torch.nn.functional.pad and kwargs.get("mode") == "replicate"
        if repeats and args[0].numel() < KERNEL_ELEMENTS:
            return torch._C._nn.pad(*args, **kwargs)
        return func(*args, **kwargs)


def decode_tiles(
    vae: AutoencoderKLHunyuanVideo, latents: torch.Tensor, first: int, start: int
) -> torch.Tensor:
    """Pixels [1, 3, F, H, W] of a part of a shot that diffusers decodes by tiles, from latent frame
    ``start``; ``latents`` begin at ``first``, where a tile does. They are right up to a tile's own
    last frame that has all its latents."""
    r = vae.temporal_compression_ratio
    length, stride = vae.tile_sample_min_num_frames // r, vae.tile_sample_stride_num_frames // r
    assert first % stride == 0, "tiles count from the shot's start"
    fade = vae.tile_sample_min_num_frames - vae.tile_sample_stride_num_frames
    before, kept = None, []
    for place in range(first, first + latents.shape[2], stride):
        part = latents[:, :, place - first : place - first + length + 1]
        tile = vae.decoder(vae.post_quant_conv(part))
        tile = tile if place == 0 else tile[:, :, 1:]
        if before is not None:
            tile = vae.blend_t(before, tile, fade)
        kept.append(tile[:, :, : vae.tile_sample_stride_num_frames + (place == 0)])
        before = tile
    begins = 0 if first == 0 else _pixel_frame(vae, first + 1)
    return torch.cat(kept, dim=2)[:, :, _pixel_frame(vae, start) - begins :]


def _pixel_frame(vae: AutoencoderKLHunyuanVideo, latent_frame: int) -> int:
    """The first of the shot's pixel frames that a latent frame stands for."""
    return 1 + vae.temporal_compression_ratio * (latent_frame - 1) if latent_frame else 0


def _check_length(tokenizer: Any, prompt: str, most: int) -> None:
    """The pipeline would leave out the rest of a longer prompt. CLIP's reading, which ends after 77
    tokens, is a summary beside Llama's: there it does."""
    text = DEFAULT_PROMPT_TEMPLATE["template"].format(prompt)
    tokens = len(tokenizer(text, truncation=False).input_ids)
    tokens -= DEFAULT_PROMPT_TEMPLATE["crop_start"]
    if tokens > most:
        raise BadJob(
            f"prompt {prompt[:40]!r}... has {tokens} tokens, and text_tokens is {most}; shorten it "
            "or raise text_tokens"
        )
