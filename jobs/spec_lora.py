"""What a job says of LoRA adapters."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator

from jobs.spec_errors import describe
from jobs.spec_part import FilePath, Part


class Lora(Part):
    """Weights that are added to the model's, times ``scale``. ``sha256`` None: whatever the file
    holds when the job is planned."""

    path: FilePath
    scale: Annotated[float, Field(ge=-100, le=100)] = 1.0
    sha256: str | None = None

    @field_validator("sha256")
    @classmethod
    def _hex(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[0-9a-f]{64}", value):
            raise ValueError(f"needs 64 hex digits (0-9, a-f), got {describe(value)}")
        return value


Loras = Annotated[
    tuple[Lora, ...],
    Field(strict=False, max_length=100),
    BeforeValidator(lambda value: () if value is None else value),
]
