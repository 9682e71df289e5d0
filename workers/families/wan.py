"""Wan 2.1 text to video, over diffusers' components. Never calls a pipeline's ``__call__``.

The arithmetic, and its order, is that of ``WanPipeline.__call__``: tests compare bit for bit.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel

from accel.positions import stage_positions
from jobs.errors import CannotRunHere
from jobs.families.family import Diffusion
from jobs.families.wan_geometry import check_wan_configs, temporal_scale
from jobs.units import ShotRender
from workers.decoding import DecodeLane, decode_piece, to_rgb8
from workers.families.family import BranchContext
from workers.families.loading import empty_cache, load_part, read_dtype, read_json, read_parts
from workers.families.loras import Adapter, fuse
from workers.schedulers import RangeStepper, read_scheduler_config

#: Class that each part of the folder must have; several where any will do.
COMPONENTS: dict[str, tuple[str, ...]] = {
    "transformer": ("WanTransformer3DModel",),
    "vae": ("AutoencoderKLWan",),
    "text_encoder": ("UMT5EncoderModel",),
    "tokenizer": ("T5Tokenizer", "T5TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"),
}

#: A decoder's context can be as large as the VAE's weights, so only a few shots keep theirs.
LANES_KEPT = 2


class WanFamily:
    """One Wan 2.1 folder on one device."""

    diffusion: Diffusion = "flow"

    def __init__(self, folder: str, dtype: str, device: str, loras: Sequence[Adapter] = ()) -> None:
        self._folder, self._loras = Path(folder), loras
        self._dtype, self._device = read_dtype(dtype), torch.device(device)
        self._parts = _check_folder(self._folder)
        transformer = read_json(self._folder / "transformer" / "config.json")
        self.latent_channels: int = transformer["in_channels"]
        self.first_alone = temporal_scale(read_json(self._folder / "vae" / "config.json")) > 1
        self.scheduler_config: Mapping[str, Any] = read_scheduler_config(folder)
        self._denoiser: WanTransformer3DModel | None = None
        self._vae: AutoencoderKLWan | None = None
        self._text: WanPipeline | None = None  # from the first prompt to whatever comes after
        self._lanes: OrderedDict[int, DecodeLane] = OrderedDict()

    @property
    def denoiser(self) -> WanTransformer3DModel:
        if self._denoiser is None:
            model = self._load(WanTransformer3DModel, "transformer", torch_dtype=self._dtype)
            fuse(WanPipeline, model, self._loras)
            self._denoiser = model
        return self._denoiser

    @property
    def vae(self) -> AutoencoderKLWan:
        """In float32 whatever the denoiser's dtype: bfloat16 bands smooth gradients."""
        if self._vae is None:
            self._vae = self._load(AutoencoderKLWan, "vae", torch_dtype=torch.float32)
        return self._vae

    def loaded_bytes(self) -> int:
        held = [model for model in (self._denoiser, self._vae) if model is not None]
        return sum(p.numel() * p.element_size() for model in held for p in model.parameters())

    @torch.no_grad()
    def encode(self, shot: ShotRender) -> dict[str, torch.Tensor]:
        if self._text is None:
            self._text = self._load_text_pipeline()
        cond, uncond = self._text.encode_prompt(
            prompt=shot.prompt,
            negative_prompt=shot.negative_prompt,
            do_classifier_free_guidance=_guided(shot),
            max_sequence_length=shot.text_tokens,
            device=self._device,
        )
        embeddings = {"cond": cond} if uncond is None else {"cond": cond, "uncond": uncond}
        return {name: tensor.to(self._dtype) for name, tensor in embeddings.items()}

    def free_text(self) -> None:
        """All prompts come first: the text encoder, often the largest part of a model, is loaded
        once for them, and is in nobody's way afterwards."""
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
        hidden = latents.to(model.dtype)
        timestep = stepper.timesteps[step].expand(latents.shape[0])
        where = _cache_context_arguments(model, stepper, step)

        stride = stepper.stride if shot.stage_positions else 1

        def forward(name: Any) -> torch.Tensor:
            places = stage_positions(model, stride)
            with branch(name), model.cache_context(name, **where), places:
                return model(
                    hidden_states=hidden,
                    timestep=timestep,
                    encoder_hidden_states=embeddings[name].to(model.dtype),
                    attention_kwargs=None,
                    return_dict=False,
                )[0]

        cond = forward("cond")
        if not _guided(shot):
            return cond
        uncond = forward("uncond")
        return uncond + shot.guidance[0] * (cond - uncond)

    def decode(
        self, shot_index: int, shot: ShotRender, latents: torch.Tensor, warm_start: int, start: int
    ) -> np.ndarray:
        self.free_text()
        # Taken out first: a context that an error has left half advanced must not be met again.
        lane = self._lanes.pop(shot_index, None)
        while len(self._lanes) >= LANES_KEPT:
            self._lanes.popitem(last=False)
        pixels, lane = decode_piece(
            self.vae, latents, warm_start=warm_start, start=start, lane=lane
        )
        if lane.position < shot.latent_frames:
            self._lanes[shot_index] = lane
        return to_rgb8(pixels)

    def _load(self, cls: Any, part: str, **dtype: torch.dtype) -> Any:
        return load_part(cls, self._folder, part, self._device, **dtype)

    def _load_text_pipeline(self) -> WanPipeline:
        """Diffusers' pipeline with nothing but what encodes a prompt."""
        name = self._parts["tokenizer"]
        tokenizer = getattr(transformers, name).from_pretrained(
            self._folder / "tokenizer", local_files_only=True
        )
        text_encoder = self._load(transformers.UMT5EncoderModel, "text_encoder", dtype=self._dtype)
        return WanPipeline(tokenizer, text_encoder, vae=None, scheduler=None)


def _guided(shot: ShotRender) -> bool:
    return shot.guidance[0] > 1.0


def _cache_context_arguments(
    model: WanTransformer3DModel, stepper: RangeStepper, step: int
) -> dict[str, Any]:
    """What newer diffusers tell a cache about the step; older ones take the name alone."""
    accepted = inspect.signature(model.cache_context).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD or p.name == "step_index" for p in accepted):
        return {}
    return {
        "step_index": step,
        "sigma": stepper.sigma(step),
        "num_inference_steps": len(stepper.timesteps),
    }


def _check_folder(folder: Path) -> dict[str, str]:
    """The class of each part. Whatever this family would render wrongly is refused by name."""
    index = read_json(folder / "model_index.json")
    if index.get("_class_name") != "WanPipeline":
        raise CannotRunHere(
            f"{folder} holds a {index.get('_class_name')}; the wan family renders WanPipeline "
            "(Wan 2.1 text to video)"
        )
    _refuse(folder, index, ("boundary_ratio", "expand_timesteps"))
    if any(index.get("transformer_2") or ()):
        raise CannotRunHere(f"{folder} has a transformer_2 (Wan 2.2), which is not supported yet")
    check_wan_configs(
        read_json(folder / "transformer" / "config.json"),
        read_json(folder / "vae" / "config.json"),
    )
    return read_parts(folder, index, COMPONENTS)


def _refuse(folder: Path, config: Mapping[str, Any], settings: tuple[str, ...]) -> None:
    for setting in settings:
        if config.get(setting) not in (None, False):
            raise CannotRunHere(
                f"{folder} sets {setting}={config[setting]!r}, which is not supported yet; "
                "use a Wan 2.1 text to video model"
            )
