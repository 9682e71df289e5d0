"""The embeddings of all captions, on disk: those of a large text encoder do not fit into memory.

Each is a file of its own, named by the model and the prompt, so a training that goes on, or another
one with the same `--out`, does not encode again.

Shapes: N text tokens, D text width.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from training.tpdiff.videos import Track, untracked

_NAME = "text"


class Texts:
    """Embeddings ND by prompt, in files of ``folder``."""

    def __init__(self, folder: Path, model: str, tokens: int, dtype: str = "float32") -> None:
        """``model`` is the identity of the text encoder's folder; ``tokens`` the most of a text;
        ``dtype`` the encoder's."""
        other = "" if dtype == "float32" else f"\0{dtype}"
        self._folder, self._model = folder, f"{model}\0{tokens}{other}"

    def encode(
        self, prompts: Iterable[str], embed: Callable[[str], Tensor], track: Track = untracked
    ) -> None:
        """Write the embeddings of those prompts that have none yet."""
        self._folder.mkdir(parents=True, exist_ok=True)
        missing = [each for each in dict.fromkeys(prompts) if not self._path(each).exists()]
        for prompt in track(missing, "encoding captions"):
            path = self._path(prompt)
            part = path.with_name(f"{path.stem}.{uuid.uuid4().hex[:8]}.part")
            save_file({_NAME: embed(prompt).contiguous()}, part)
            part.replace(path)

    def __getitem__(self, prompt: str) -> Tensor:
        return load_file(self._path(prompt))[_NAME]

    def _path(self, prompt: str) -> Path:
        told = hashlib.sha256(f"{self._model}\0{prompt}".encode()).hexdigest()
        return self._folder / f"{told[:32]}.safetensors"
