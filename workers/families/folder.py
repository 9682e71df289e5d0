"""What the families have in common: a diffusers folder whose parts are loaded as needed."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers

from jobs.errors import BadJob, CannotRunHere
from jobs.families import FAMILIES, family_of
from jobs.families.family import Diffusion
from jobs.units import ShotRender
from workers.families.loading import (
    empty_cache,
    load_part,
    load_plain,
    read_dtype,
    read_json,
    read_parts,
)
from workers.families.loras import Adapter, fuse
from workers.lanes import LaneKeeper
from workers.machine import all_cores
from workers.schedulers import read_scheduler_config

#: The classes that each part of a folder may have.
Parts = Mapping[str, tuple[str, ...]]

#: The classes under which a tokenizer may have been saved.
_ANY_TOKENIZER = ("PreTrainedTokenizerFast", "TokenizersBackend")
T5_TOKENIZERS = ("T5Tokenizer", "T5TokenizerFast", *_ANY_TOKENIZER)
CLIP_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast", *_ANY_TOKENIZER)


class FolderModel(ABC):
    """One folder on one device. Raises CannotRunHere at once for one that cannot be rendered."""

    name: ClassVar[str]
    pipeline: ClassVar[type]  # diffusers', of which nothing is ever called but what encodes
    denoiser_kind: ClassVar[Any]
    vae_kind: ClassVar[Any]
    parts: ClassVar[Parts]
    #: Whether the pipeline rounds latents to the denoiser's dtype after each step. Where it does
    #: not, they stay as the scheduler gives them.
    rounds_latents: ClassVar[bool] = False
    even_sigmas: ClassVar[bool] = False  # whether the pipeline spreads a flow's steps from 1 to 0

    def __init__(
        self,
        folder: str,
        dtype: str,
        device: str,
        loras: Sequence[Adapter] = (),
        decoder_dtype: str = "float32",
    ) -> None:
        self._folder, self._loras = Path(folder), loras
        self._dtype, self.device = read_dtype(dtype), torch.device(device)
        self._decoder_dtype = read_dtype(decoder_dtype)
        facts = FAMILIES[self.name]
        index = read_json(self._folder / "model_index.json")
        if (found := family_of(index).name) != self.name:
            raise CannotRunHere(f"{folder} holds a model of {found}, not of {self.name}")
        self._classes = read_parts(self._folder, index, self.parts)
        configs = {
            part: read_json(self._folder / part / "config.json") for part in facts.components
        }
        self.geometry = facts.geometry(configs, facts.defaults)
        self.diffusion: Diffusion = facts.diffusion
        self.latent_channels = self.geometry.latent_channels
        self.first_alone = self.geometry.first_alone
        self.scheduler_config: Mapping[str, Any] = read_scheduler_config(folder)
        self._lanes = LaneKeeper()  # of a decoder that goes on where it stood
        self.encodes_on = self.device  # read when the encoders are loaded
        self._text: Any = None  # from the first shot's encoding to whatever comes after

    @property
    def dtype(self) -> str:
        """The name of what the denoiser computes in."""
        return str(self._dtype).removeprefix("torch.")

    @cached_property
    def denoiser(self) -> Any:
        part = FAMILIES[self.name].denoiser
        model = self._load(self.denoiser_kind, part, torch_dtype=self._dtype)
        fuse(self.pipeline, model, self._loras)
        return model

    @cached_property
    def vae(self) -> Any:
        """What decodes, in a dtype of its own."""
        return self._load(self.vae_kind, "vae", torch_dtype=self._decoder_dtype)

    def loaded_bytes(self, *parts: str) -> int:
        """Bytes of the weights that are held now: of the denoiser and what decodes, or of one."""
        held = [vars(self)[name] for name in parts or ("denoiser", "vae") if name in vars(self)]
        return sum(p.numel() * p.element_size() for model in held for p in model.parameters())

    def has_encoders(self) -> bool:
        """Whether they are loaded now."""
        return self._text is not None

    @torch.no_grad()
    def encode(self, shot: ShotRender) -> dict[str, torch.Tensor]:
        """What `predict` needs of the shot's prompts or image, by name, in the model's dtype."""
        if self._text is None:
            self._text = self._load_encoders()
        with all_cores() if self.encodes_on != self.device else nullcontext():
            embeddings = self.embed(self._text, shot)
        return {name: tensor.to(self._dtype) for name, tensor in embeddings.items()}

    @abstractmethod
    def embed(self, pipeline: Any, shot: ShotRender) -> dict[str, torch.Tensor]:
        """``pipeline`` is diffusers', with nothing but what encodes."""

    def guided(self, shot: ShotRender) -> bool:
        return self.geometry.has_two_branches(shot.guidance)

    def prompts_read(self, shot: ShotRender) -> tuple[str, ...]:
        """Those that the encoder reads: without guidance there is no use for a negative one."""
        return (shot.prompt, shot.negative_prompt) if self.guided(shot) else (shot.prompt,)

    def kept(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents in the dtype that the family's pipeline keeps them in between steps."""
        return latents.to(self._dtype) if self.rounds_latents else latents

    def free_text(self) -> None:
        """All shots are encoded first: the encoders, often the largest part of a model, are loaded
        once for them, and are in nobody's way afterwards."""
        if self._text is not None:
            self._text = None
            empty_cache(self.device)

    def drop_lanes(self) -> None:
        """The next piece of each shot warms up anew."""
        self._lanes = LaneKeeper()

    def _load(self, cls: Any, part: str, **dtype: torch.dtype) -> Any:
        return load_part(cls, self._folder, part, self.device, **dtype)

    def _load_encoder(self, cls: Any, part: str, **dtype: torch.dtype) -> Any:
        return load_part(cls, self._folder, part, self.encodes_on, **dtype)

    @cached_property
    def tokenizer(self) -> Any:
        """Of the prompts, or of the first encoder where there are several."""
        return self._load_plain("tokenizer")

    def _load_plain(self, part: str) -> Any:
        """A part without weights."""
        cls = getattr(transformers, self._classes[part])
        return load_plain(cls, self._folder / part)

    def _load_encoders(self) -> Any:
        """Diffusers' pipeline with nothing but what encodes: encoders, and the tokenizers and the
        like that have no weights."""
        facts, parts = FAMILIES[self.name], {}
        for part in self.parts.keys() - {facts.denoiser, "vae"}:
            if part in facts.components:
                cls = getattr(transformers, self._classes[part])
                parts[part] = self._load_encoder(cls, part, dtype=self._dtype)
            else:
                parts[part] = self._load_plain(part)
        needed = {
            name: None
            for name, parameter in inspect.signature(self.pipeline).parameters.items()
            if parameter.default is parameter.empty
        }
        return self.pipeline(**(needed | parts))


class FolderFamily(FolderModel):
    """A family whose shots start from their prompts."""

    def embed(self, pipeline: Any, shot: ShotRender) -> dict[str, torch.Tensor]:
        """``cond`` and, with guidance, ``uncond``: [1, text_tokens, text_dim]."""
        cond, uncond = self.encode_prompts(pipeline, shot)
        return {"cond": cond} if uncond is None else {"cond": cond, "uncond": uncond}

    @abstractmethod
    def encode_prompts(
        self, pipeline: Any, shot: ShotRender
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Embeddings of the prompt and, with guidance, of the negative one."""


#: Where a job says how many tokens are read.
OR_READ_MORE = "shorten it, or raise text_tokens"


def check_length(tokenizer: Any, most: int, *prompts: str, fix: str = "shorten it") -> None:
    """An encoder reads so many tokens; diffusers would leave out the rest of a longer prompt.
    Raises BadJob."""
    for prompt in prompts:
        if wrong := too_long(tokenizer, most, prompt, fix):
            raise BadJob(f"prompt {prompt[:40]!r}... {wrong}")


def too_long(tokenizer: Any, most: int, prompt: str, fix: str = "shorten it") -> str:
    """What is wrong with a prompt of more tokens than ``most``, or ""."""
    tokens = len(tokenizer(prompt, truncation=False).input_ids)
    if tokens <= most:
        return ""
    return f"has {tokens} tokens, and this model reads {most}; {fix}"
