"""What the layers above must know of a model family, from its config files alone.

Pure: no torch, no files. ``workers.families`` has what computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from jobs.errors import CannotRunHere
from jobs.geometry import ModelGeometry

Config = Mapping[str, Any]
Shape = tuple[int, ...]
Shapes = dict[str, Shape]

#: How a family's models mix noise in: flow matching, keeping the variance (DDPM, DDIM), that with
#: the whole schedule's ratio of signal to noise shifted (CogVideoX), or adding it to what stays as
#: it is (EDM, Karras et al. 2022). In "flow_by_size" the shift of flow matching grows with the
#: latent places that the model sees at once (LTX-Video); in "flow_quadratic" half of the steps are
#: spent on the first fortieth of the way, and the rest lengthen evenly (LTX-Video from 0.9.5 on).
Diffusion = Literal["flow", "variance", "snr_shifted", "flow_by_size", "flow_quadratic", "edm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDefaults:
    """What a job gets where it says nothing. The values that stand here are Wan 2.1's."""

    size: tuple[int, int] = (832, 480)  # width and height, px
    fps: int = 16
    steps: int = 50
    guidance: tuple[float, ...] = (5.0,)  # one per expert
    negative: str = ""
    text_tokens: int = 512
    flow_shift: float | None = None  # None: as the scheduler's config says
    window_latent_frames: int = 21
    overlap_latent_frames: int = 5
    pyramid_steps: tuple[int, ...] = ()  # shares of the stages that the weights were trained for
    stage_positions: bool = False  # whether a coarse stage's frames stand as far apart as they are


class FamilyFacts(Protocol):
    """A family as plain data. ``configs`` holds the config of each of ``components``."""

    name: str
    pipeline: str  # the class in model_index.json
    marks: Mapping[str, bool]  # what else there tells it from others of that pipeline
    denoiser: str  # the component that accelerations attach to
    classes: Mapping[str, str]  # diffusers', of the denoiser and the autoencoder
    components: tuple[str, ...]  # those with weights
    tokenizer_files: tuple[tuple[str, ...], ...]  # all of one row must be there
    diffusion: Diffusion
    accelerations: tuple[str, ...]  # the names of those that its denoiser takes
    batches_branches: bool  # whether both guidance branches go through the denoiser at once
    joint_text: bool  # whether its self-attention is of the text's tokens, too
    decodes_in_float32: bool  # whatever the denoiser's dtype, unless a job says otherwise
    defaults: ModelDefaults

    def refuse(self, index: Config) -> None:
        """Raise CannotRunHere for a pipeline of another kind than is built."""
        ...

    def geometry(self, configs: Mapping[str, Config], defaults: ModelDefaults) -> ModelGeometry:
        """Raises CannotRunHere where the configs do not fit each other or are not built."""
        ...

    def tensors(self, configs: Mapping[str, Config]) -> dict[str, Shapes]:
        """Component -> name -> shape of all its weights. A component that is not in it is checked
        by the library that loads it."""
        ...

    def longest_window(self, configs: Mapping[str, Config], stride: int) -> int:
        """The most latent frames that a window can have whose frames stand ``stride`` apart."""
        ...


def no_flow_shift(family: str) -> tuple[str, str]:
    """Of a family whose schedule is not shifted, or by no number of the job's."""
    return "flow_shift", f"{family} models have no flow shift"


def always_text_tokens(tokens: int) -> tuple[str, str]:
    """Of a family whose prompts are always padded to as many tokens as the encoder takes."""
    return "text_tokens", f"the text encoder of this model always has {tokens}"


def require(config: Config, file: str, names: Sequence[str], lists: Sequence[str] = ()) -> None:
    """Every one of ``names`` must hold a positive whole number, or, where it is one of ``lists``,
    a list of them (of booleans, where their name says downsample)."""
    missing = [name for name in names if config.get(name) is None]
    if missing:
        raise CannotRunHere(f"{file} lacks {', '.join(missing)}")
    for name in names:
        value = config[name]
        listed = name in lists
        parts = value if listed and isinstance(value, list) else [value]
        kind = bool if "downsample" in name else int
        if listed != isinstance(value, list) or not all(type(part) is kind for part in parts):
            raise CannotRunHere(f"{file}: {name} cannot be {value!r}")
        if not parts or (kind is int and min(parts) < 1):
            raise CannotRunHere(f"{file}: {name} cannot be {value!r}")


def name_classes(family: FamilyFacts, configs: Mapping[str, dict[str, Any]], model: str) -> None:
    """Give the configs the classes that the family reads them as, as diffusers does with one that
    names none. Raises CannotRunHere for one that names another."""
    for part, kind in family.classes.items():
        found = configs[part].setdefault("_class_name", kind)
        if found != kind:
            raise CannotRunHere(
                f"model {model}: {part}/config.json: _class_name is {found!r}; it must be {kind} "
                f"for {family.name}. Copy {part}/ again from the model"
            )


#: Bytes per parameter of what a worker loads.
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def float32_elements(dtype: str) -> int:
    """Elements of ``dtype`` that a value takes which is computed in float32."""
    return 4 // DTYPE_BYTES[dtype]


def encoding_bytes(family: FamilyFacts, parameters: Mapping[str, int], dtype: str) -> int:
    """Of the weights while what shots start from is encoded: the denoiser, which a worker holds
    from its start, and the encoders, an image's VAE in float32 among them. They are freed then."""
    encoders = set(family.components) - {"vae"}
    held = sum(parameters[each] for each in encoders) * DTYPE_BYTES[dtype]
    image = "image_encoder" in encoders
    return held + (parameters["vae"] * DTYPE_BYTES["float32"] if image else 0)


def rendering_bytes(
    family: FamilyFacts, parameters: Mapping[str, int], dtype: str, decoder_dtype: str
) -> int:
    """Of the weights afterwards: the denoiser, and the VAE that decodes."""
    denoiser = parameters[family.denoiser] * DTYPE_BYTES[dtype]
    return denoiser + parameters["vae"] * DTYPE_BYTES[decoder_dtype]
