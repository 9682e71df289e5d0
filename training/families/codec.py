"""A trained autoencoder of ``autoencoder.py``, as its denoiser's training knows it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from training.families.autoencoder import KINDS

#: Clips that are encoded together.
CHUNK = 2


class FamilyCodec:
    """Its scaling factor normalises: the statistics are in its weights."""

    def __init__(self, name: str, folder: Path, device: str = "cpu") -> None:
        self.kind = KINDS[name]
        self.vae = self.kind.model.from_pretrained(folder).to(device).eval()
        self.time_scale, self.space_scale = self.kind.time_scale, self.kind.space_scale

    @torch.no_grad()
    def encode(self, x_BCFHW: Tensor) -> Tensor:
        with torch.autocast(self.vae.device.type, dtype=torch.bfloat16):
            parts = [
                self.kind.encode(self.vae, part.to(self.vae.device)).float()
                for part in x_BCFHW.split(CHUNK)
            ]
        return torch.cat(parts)
