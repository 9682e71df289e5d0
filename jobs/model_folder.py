"""Finds a model's folder, and checks that it is whole and of a family that is built.

Reads configs, file headers and hashes only: no torch, no diffusers, no weight is loaded.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.errors import BadJob, CannotRunHere
from jobs.families import family_of
from jobs.families.animatediff import HOW_TO_SAVE
from jobs.families.family import FamilyFacts, ModelDefaults, name_classes
from jobs.families.tensors import check_tensors
from jobs.geometry import ModelGeometry
from jobs.model_hashes import hash_files, identity
from jobs.pyramid import MOST_STAGES
from jobs.weight_headers import Header, read_headers

SIDECAR = "longtake.json"

#: The models that ship, by name: of each kind a plain one, and its twin that knows a pyramid of
#: three stages.
DEMOS = {
    "demo": "demo_model",
    "demo-pyramid": "demo_pyramid",
    "demo-animatediff": "demo_animatediff",
    "demo-animatediff-pyramid": "demo_animatediff_pyramid",
}
DEMO_NAMES = ", ".join(repr(name) for name in DEMOS)

_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a model folder holds. ``identity`` changes whenever a byte of what is loaded does."""

    folder: Path
    family: FamilyFacts
    geometry: ModelGeometry
    defaults: ModelDefaults
    weights: dict[str, str]  # file within the folder -> sha256
    identity: str  # sha256 over configs, weights and tokenizer
    parameters: dict[str, int]  # component -> number of its parameters
    parameters_bytes: dict[str, int]  # component -> size of its tensors, as stored
    configs: dict[str, dict[str, Any]]  # component -> its config; "scheduler" among them


def is_at_hand(name: str) -> bool:
    """Whether ``resolve_model`` fetches nothing for this name."""
    return name in DEMOS or os.path.isdir(Path(name).expanduser())


def resolve_model(name: str) -> Path:
    """The folder of a demo model, of a path, or of a Hugging Face id ``org/name[@revision]``.

    A relative path counts from the current folder. Raises BadJob for a name that can be none of
    them, CannotRunHere where a model cannot be fetched.
    """
    if name in DEMOS:
        return _demo_folder(DEMOS[name])
    valid = f"{DEMO_NAMES}, the folder of a model, or a Hugging Face id like org/name"
    return resolve_folder(name, "model", valid, ["model_index.json", "config.json"], _patterns_of)


def resolve_folder(
    name: str, what: str, valid: str, first: list[str], rest: Callable[[Path], list[str]]
) -> Path:
    """The folder of a path, or of a Hugging Face id, of which ``first`` is fetched, and then what
    ``rest`` says of that. Raises BadJob for a name that can be neither, CannotRunHere for what
    cannot be fetched; both call it ``what`` and say what is ``valid``."""
    folder = Path(name).expanduser()
    if os.path.isdir(folder):
        return folder.resolve()
    # os.path says no, where Path raises, to a name that is too long for a file
    found, exists = _HUB_ID.fullmatch(name), os.path.exists(folder)
    if exists or found is None or name.startswith(("./", "../", "~", "/")):
        why = "is a file" if exists else "is no folder here"
        raise BadJob(f"{what}: {name!r} {why}; valid: {valid}")
    try:
        return _snapshot(name, rest(_snapshot(name, first)))
    except _NotFetched as failure:
        raise CannotRunHere(
            f"{what} {name!r} is no folder here and could not be had from Hugging Face: {failure}\n"
            f"Valid: {valid}. Without a network, fetch it once with one (hf download org/name), or "
            "copy its folder here and give the path"
        ) from failure


class _NotFetched(Exception):
    pass


def _snapshot(name: str, patterns: list[str]) -> Path:
    """The files of a Hugging Face repository that match."""
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    try:
        return Path(
            snapshot_download(repository, revision=revision or None, allow_patterns=patterns)
        )
    except Exception as error:  # the hub's client lets errors of several libraries through
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise _NotFetched(reason.removeprefix("Got: ")) from error


def _demo_folder(folder: str) -> Path:
    package = importlib.util.find_spec("workers")
    for place in (package.submodule_search_locations or []) if package else []:
        if (Path(place) / folder / "model_index.json").is_file():
            return (Path(place) / folder).resolve()
    raise CannotRunHere("the demo model is missing from this installation; install longtake again")


def pinned_name(name: str, folder: Path) -> str:
    """The name under which a job keeps its model: it means the same files later, from any folder.

    ``folder`` is what `resolve_model` gave for ``name``. A Hugging Face id gets the commit that
    was fetched, since its main branch may move on.
    """
    if name in DEMOS:
        return name
    found = _HUB_ID.fullmatch(name)
    if Path(name).expanduser().is_dir() or found is None:
        return str(folder)
    fetched = folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name)
    return f"{found['id']}@{folder.name}" if fetched else name


def _patterns_of(folder: Path) -> list[str]:
    """So that a model of another family costs no weights."""
    return download_patterns(family_of(read_json(folder, "model_index.json")))


def download_patterns(family: FamilyFacts) -> list[str]:
    """What is fetched from Hugging Face: nothing that could hold code, and no weights but those
    that are loaded, where some repositories have them in other precisions as well."""
    return [
        "model_index.json",
        SIDECAR,
        *(f"{each}/*.json" for each in family.components),
        *(
            f"{each}/{_stem(each)}{part}.safetensors"
            for each in family.components
            for part in ("", "-*")
        ),
        "scheduler/*.json",
        "feature_extractor/*.json",
        *(
            f"{each}/*.{end}"
            for each in tokenizers(family).values()
            for end in ("json", "txt", "model")
        ),
    ]


def inspect_model(folder: Path) -> ModelInfo:
    """Check a diffusers folder and describe it. Raises CannotRunHere naming file and tensor."""
    index = read_json(folder, "model_index.json")
    family = family_of(index)
    configs = {name: read_json(folder, f"{name}/config.json") for name in family.components}
    name_classes(family, configs, str(folder))
    configs[family.denoiser] |= family.marks  # what it takes hangs on them, too
    scheduler = read_json(folder, "scheduler/scheduler_config.json")
    for encoder, tokenizer in tokenizers(family).items():
        _check_tokenizer(folder, family, tokenizer, encoder, configs[encoder].get("vocab_size"))
    defaults = read_defaults(folder, family.defaults)
    geometry = family.geometry(configs, defaults)
    defaults = replace(defaults, text_tokens=geometry.text_tokens)
    files = {name: weight_files(folder, name) for name in family.components}
    headers = {name: read_headers(folder, files[name]) for name in family.components}
    _check_weights(family, configs, files, headers)
    weights = hash_files(folder, [file for each in files.values() for file in each])
    return ModelInfo(
        folder=folder,
        family=family,
        geometry=geometry,
        defaults=defaults,
        weights=weights,
        identity=identity(folder, weights),
        parameters={name: header.parameters for name, header in headers.items()},
        parameters_bytes={name: header.data_bytes for name, header in headers.items()},
        configs=configs | {"scheduler": scheduler},
    )


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A configuration file of a model. Raises CannotRunHere."""
    path = folder / name
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        fix = _fix(folder) if name == "model_index.json" else "copy it"
        raise CannotRunHere(f"model {folder}: {name} is missing; {fix}") from None
    except (OSError, ValueError) as error:
        raise CannotRunHere(f"model {folder}: {name} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CannotRunHere(f"model {folder}: {name} must hold a JSON object")
    return value


def _fix(folder: Path) -> str:
    """What to do about a folder that is no pipeline's."""
    with contextlib.suppress(OSError, ValueError):
        if '"MotionAdapter"' in (folder / "config.json").read_text("utf-8"):
            return f"a motion adapter alone is no model: {HOW_TO_SAVE}"
    return "it must be a folder in diffusers format"


def tokenizers(family: FamilyFacts) -> dict[str, str]:
    """The tokenizer of each of the family's text encoders."""
    encoders = [each for each in family.components if each.startswith("text_encoder")]
    return {each: each.replace("text_encoder", "tokenizer") for each in encoders}


def _check_tokenizer(
    folder: Path, family: FamilyFacts, part: str, encoder: str, vocab_size: object
) -> None:
    read_json(folder, f"{part}/tokenizer_config.json")
    there = {path.name for path in (folder / part).iterdir()}
    if not any(there.issuperset(files) for files in family.tokenizer_files):
        needed = " or ".join(" with ".join(files) for files in family.tokenizer_files)
        raise CannotRunHere(f"model {folder}: {part}/ lacks {needed}; copy it")
    if "tokenizer.json" in there:
        _check_words(folder, f"{part}/tokenizer.json", encoder, vocab_size)


def _check_words(folder: Path, name: str, encoder: str, vocab_size: object) -> None:
    """The tokenizer can be read, and says no word that the text encoder does not know."""
    from tokenizers import Tokenizer

    try:
        words = Tokenizer.from_str((folder / name).read_text("utf-8")).get_vocab()
    except Exception as error:  # the library raises nothing narrower
        raise CannotRunHere(
            f"model {folder}: {name} is no tokenizer: {error}; copy it again"
        ) from error
    largest = max(words.values(), default=-1)
    if not words or (isinstance(vocab_size, int) and largest >= vocab_size):
        raise CannotRunHere(
            f"model {folder}: {name} has {len(words)} words up to number {largest}, but "
            f"{encoder} knows {vocab_size}; copy both from the same model"
        )


def read_defaults(folder: Path, defaults: ModelDefaults) -> ModelDefaults:
    """The family's defaults, with what the folder's sidecar says. Raises CannotRunHere."""
    if not (folder / SIDECAR).is_file():
        return defaults
    said = read_json(folder, SIDECAR)
    if said.pop("format", None) != 1:
        raise CannotRunHere(f"{SIDECAR}: format must be 1")
    values = {name: _sidecar_value(name, value) for name, value in said.items()}
    defaults = replace(defaults, **values)
    if not 0 <= defaults.overlap_latent_frames < defaults.window_latent_frames:
        raise CannotRunHere(f"{SIDECAR}: overlap_latent_frames must be less than the window")
    return defaults


def _sidecar_value(name: str, value: Any) -> Any:
    numbers = value if isinstance(value, list) else [value]
    whole = ("fps", "steps", "text_tokens", "window_latent_frames")
    if name in (*whole, "overlap_latent_frames"):
        valid = type(value) is int and value >= (1 if name in whole else 0)
    elif name == "size":
        valid = len(numbers) == 2 and all(type(each) is int and each > 0 for each in numbers)
    elif name == "stage_positions":
        valid = isinstance(value, bool)
    elif name == "pyramid_steps":
        valid = 1 <= len(numbers) <= MOST_STAGES and all(
            type(each) is int and each > 0 for each in numbers
        )
    elif name in ("guidance", "flow_shift"):
        valid = all(type(each) in (int, float) and math.isfinite(each) for each in numbers)
        valid = valid and bool(numbers) and (name == "guidance" or not isinstance(value, list))
    else:
        valid_names = ["format", *ModelDefaults.__dataclass_fields__]
        valid_names.remove("negative")
        raise CannotRunHere(f"{SIDECAR}: unknown {name!r}; valid: {', '.join(valid_names)}")
    if not valid:
        raise CannotRunHere(f"{SIDECAR}: {name} cannot be {value!r}")
    if name in ("size", "pyramid_steps"):
        return tuple(numbers)
    if name == "guidance":
        return tuple(float(each) for each in numbers)
    return value


def _stem(component: str) -> str:
    """What the names of its weights begin with."""
    return "model" if "encoder" in component else "diffusion_pytorch_model"


def weight_files(folder: Path, component: str) -> list[str]:
    """The safetensors files of a component, within the folder. Raises CannotRunHere."""
    stem = _stem(component)
    single = f"{component}/{stem}.safetensors"
    index = f"{component}/{stem}.safetensors.index.json"
    if (folder / single).is_file() and (folder / index).is_file():
        raise CannotRunHere(f"model {folder}: {single} and {index} both exist; remove one")
    if (folder / single).is_file():
        return [single]
    if (folder / index).is_file():
        return _shards(folder, component, index)
    pickled = [path.name for path in (folder / component).glob("*.bin")]
    if pickled:
        raise CannotRunHere(
            f"model {folder}: {component}/ has only pickled weights ({pickled[0]}), which can run "
            "code when they are loaded; convert them to safetensors"
        )
    raise CannotRunHere(f"model {folder}: {single} is missing; copy it")


def _shards(folder: Path, component: str, index: str) -> list[str]:
    mapping = read_json(folder, index).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise CannotRunHere(f"model {folder}: {index} lists no weights")
    names = sorted(set(map(str, mapping.values())))
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise CannotRunHere(f"model {folder}: {index} names {outside[0]!r}, outside its folder")
    missing = [name for name in names if not (folder / component / name).is_file()]
    if missing:
        raise CannotRunHere(f"model {folder}: {component}/ lacks {', '.join(missing)}; copy it")
    return [f"{component}/{name}" for name in names]


def _check_weights(
    family: FamilyFacts,
    configs: Mapping[str, Any],
    files: Mapping[str, list[str]],
    headers: Mapping[str, Header],
) -> None:
    """Every component has the tensors that its config implies, and no others."""
    for name, expected in family.tensors(configs).items():
        file = files[name][0] if len(files[name]) == 1 else f"{name}/*.safetensors"
        check_tensors(name, file, headers[name].shapes, expected)
