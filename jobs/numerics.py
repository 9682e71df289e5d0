"""What a result's bits depend on besides its recipe, and what a worker can do."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class NumericsClass:
    """Two results of the same recipe and the same class are bit-identical."""

    device: str  # the name of the CPU, after "cpu: ", or of the GPU
    capability: str  # CPU: what torch uses and the matrix units there are; GPU: compute capability
    dtype: str  # of the model: "float32", "bfloat16", "float16"
    torch: str
    diffusers: str
    attention: str  # attention backend
    slices: int
    threads: int
    deterministic: bool
    transformers: str = ""  # like what follows, empty only of a worker that is simulated
    numpy: str = ""  # draws the noise
    av: str = ""  # encodes the pieces
    driver: str = ""  # GPU: CUDA, cuDNN and driver versions
    peft: str = ""  # adds adapters to the weights; empty without any
    images: str = ""  # what reads images; empty without any

    def digest(self) -> str:
        """Twelve hex digits that name the class."""
        told = asdict(self)
        for name in ("peft", "images"):  # a class without them is called what it always was
            if not told[name]:
                del told[name]
        text = json.dumps(told, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerProfile:
    """What a worker measured of itself when it joined."""

    numerics: NumericsClass
    free_bytes: int  # memory for tiles, after the model was loaded
    model_bytes: int
    host: str
    process: int

    def shares_memory(self, other: WorkerProfile) -> bool:
        """Whether both take their tiles from the same memory: the host's. A GPU has its own."""
        on_cpu = self.numerics.device.startswith("cpu") and other.numerics.device.startswith("cpu")
        return on_cpu and self.host == other.host
