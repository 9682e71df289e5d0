"""AnimateDiff, text to video, over diffusers' components. Never calls a pipeline's ``__call__``.

The arithmetic, and its order, is that of ``AnimateDiffPipeline.__call__``: both guidance branches
go through the UNet as one batch, unconditional first. Every latent frame is decoded by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from diffusers import AnimateDiffPipeline, AutoencoderKL, UNetMotionModel

from jobs.errors import BadJob, CannotRunHere
from jobs.families import family_of
from jobs.families.family import Diffusion
from jobs.units import ShotRender
from workers.decoding import to_rgb8
from workers.families.family import BranchContext
from workers.families.loading import empty_cache, load_part, read_dtype, read_json, read_parts
from workers.families.loras import Adapter, fuse
from workers.schedulers import RangeStepper, read_scheduler_config

#: Class that each part of the folder must have; several where any will do.
COMPONENTS: dict[str, tuple[str, ...]] = {
    "unet": ("UNetMotionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": (
        "CLIPTokenizer",
        "CLIPTokenizerFast",
        "PreTrainedTokenizerFast",
        "TokenizersBackend",
    ),
}


class AnimateDiffFamily:
    """One AnimateDiff folder on one device."""

    diffusion: Diffusion = "variance"
    first_alone = False  # a latent frame is a pixel frame

    def __init__(self, folder: str, dtype: str, device: str, loras: Sequence[Adapter] = ()) -> None:
        self._folder, self._loras = Path(folder), loras
        self._dtype, self._device = read_dtype(dtype), torch.device(device)
        index = read_json(self._folder / "model_index.json")
        if family_of(index).name != "animatediff":
            raise CannotRunHere(f"{folder} holds a {index.get('_class_name')}, not AnimateDiff")
        self._parts = read_parts(self._folder, index, COMPONENTS)
        unet = read_json(self._folder / "unet" / "config.json")
        self.latent_channels: int = unet["in_channels"]
        self.scheduler_config: Mapping[str, Any] = read_scheduler_config(folder)
        self._denoiser: UNetMotionModel | None = None
        self._vae: AutoencoderKL | None = None
        self._text: AnimateDiffPipeline | None = None

    @property
    def denoiser(self) -> UNetMotionModel:
        if self._denoiser is None:
            model = self._load(UNetMotionModel, "unet", torch_dtype=self._dtype)
            fuse(AnimateDiffPipeline, model, self._loras)
            self._denoiser = model
        return self._denoiser

    @property
    def vae(self) -> AutoencoderKL:
        """In float32 whatever the denoiser's dtype, as Stable Diffusion's needs it."""
        if self._vae is None:
            self._vae = self._load(AutoencoderKL, "vae", torch_dtype=torch.float32)
        return self._vae

    def loaded_bytes(self) -> int:
        held = [model for model in (self._denoiser, self._vae) if model is not None]
        return sum(p.numel() * p.element_size() for model in held for p in model.parameters())

    @torch.no_grad()
    def encode(self, shot: ShotRender) -> dict[str, torch.Tensor]:
        if self._text is None:
            self._text = self._load_text_pipeline()
        self._check_length(shot.prompt, shot.negative_prompt)
        cond, uncond = self._text.encode_prompt(
            shot.prompt,
            self._device,
            1,
            _guided(shot),
            shot.negative_prompt,
        )
        embeddings = {"cond": cond} if uncond is None else {"cond": cond, "uncond": uncond}
        return {name: tensor.to(self._dtype) for name, tensor in embeddings.items()}

    def _check_length(self, *prompts: str) -> None:
        """CLIP reads so many tokens; diffusers would leave out the rest of a longer prompt."""
        assert self._text is not None
        tokenizer = self._text.tokenizer
        for prompt in prompts:
            tokens = len(tokenizer(prompt, truncation=False).input_ids)
            if tokens > tokenizer.model_max_length:
                raise BadJob(
                    f"prompt {prompt[:40]!r}... has {tokens} tokens, and this model reads "
                    f"{tokenizer.model_max_length}; shorten it"
                )

    def free_text(self) -> None:
        """All prompts come first."""
        if self._text is not None:
            self._text = None
            empty_cache(self._device)

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
        guided = _guided(shot)
        text = [embeddings["uncond"], embeddings["cond"]] if guided else [embeddings["cond"]]
        hidden = torch.cat([latents.to(model.dtype)] * len(text))
        with branch("both" if guided else "cond"):
            prediction = model(
                hidden,
                stepper.timesteps[step],
                encoder_hidden_states=torch.cat(text).repeat_interleave(latents.shape[2], dim=0),
                return_dict=False,
            )[0]
        if not guided:
            return prediction
        uncond, cond = prediction.chunk(2)
        return uncond + shot.guidance[0] * (cond - uncond)

    def decode(
        self, shot_index: int, shot: ShotRender, latents: torch.Tensor, warm_start: int, start: int
    ) -> np.ndarray:
        self.free_text()
        return self.decode_frames(latents[:, :, start - warm_start :])

    @torch.no_grad()
    def decode_frames(self, latents: torch.Tensor) -> np.ndarray:
        """RGB uint8 [F, H, W, 3]; each frame by itself, so that a piece has the bits of a whole."""
        vae, (frames,) = self.vae, latents
        scaled = 1 / vae.config.scaling_factor * frames.to(vae.device, vae.dtype)
        pixels = [vae.decode(each[None]).sample for each in scaled.unbind(1)]
        return to_rgb8(torch.stack(pixels, dim=2))

    def _load(self, cls: Any, part: str, **dtype: torch.dtype) -> Any:
        return load_part(cls, self._folder, part, self._device, **dtype)

    def _load_text_pipeline(self) -> AnimateDiffPipeline:
        """Diffusers' pipeline with nothing but what encodes a prompt."""
        tokenizer = getattr(transformers, self._parts["tokenizer"]).from_pretrained(
            self._folder / "tokenizer", local_files_only=True
        )
        text_encoder = self._load(transformers.CLIPTextModel, "text_encoder", dtype=self._dtype)
        return _pipeline_of(text_encoder=text_encoder, tokenizer=tokenizer)


def _pipeline_of(**parts: Any) -> AnimateDiffPipeline:
    """Diffusers' pipeline with these parts alone."""
    names = ("vae", "text_encoder", "tokenizer", "unet", "motion_adapter", "scheduler")
    return AnimateDiffPipeline(**(dict.fromkeys(names) | parts))


def _guided(shot: ShotRender) -> bool:
    return shot.guidance[0] > 1.0
