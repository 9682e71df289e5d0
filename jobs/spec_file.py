"""Reads job specs from YAML files and from flags; every mistake is a BadJob with its place."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path as FilePath
from typing import Any

import yaml
from pydantic import ValidationError

from jobs.accelerations import Accelerations, Adaptive, FastAttention, Rehash, Slicing
from jobs.errors import BadJob
from jobs.spec import SHORTHAND, JobSpec, Output, Shot
from jobs.spec_errors import Path, Places, Problem, bad_job, describe, explain, unknown
from jobs.spec_later import Audio
from jobs.spec_lora import Lora
from jobs.spec_part import Part
from jobs.spec_paths import from_folder

MAX_FILE_BYTES = 1_000_000
MAX_NODES = 200_000  # aliases count each time they are used
MAX_DEPTH = 20


def load_spec(path: FilePath | str, overrides: Mapping[str, Any] | None = None) -> JobSpec:
    """Read a job file, in which paths count from its folder; ``overrides`` are fields given as
    flags, which win. Raises BadJob."""
    path = FilePath(path)
    data, marks = _read_yaml(_read_text(path), str(path))
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    places = Places(str(path), marks, frozenset(given))
    return parse_spec(_with_flags(from_folder(data, os.path.dirname(path)), given), places)


def spec_from_flags(flags: Mapping[str, Any]) -> JobSpec:
    """A job from flags alone, by field name; None means not given. Raises BadJob.

    A size may be the text ``832x480``; ``codec`` and ``quality`` are those of the output.
    """
    given = {key: value for key, value in flags.items() if value is not None}
    return parse_spec(_with_flags({}, given), Places(flags=frozenset(given)))


def parse_spec(data: Mapping[str, Any], places: Places | None = None) -> JobSpec:
    """Check plain data as a job. Raises BadJob with all problems found."""
    places = places or Places()
    try:
        spec = JobSpec.model_validate(data)
    except ValidationError as error:
        raise bad_job(_problems(error, data, places), places) from None
    spec._places = places
    return spec


def _with_flags(data: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    merged = data | {key: value for key, value in given.items() if key not in Output.model_fields}
    output = {key: value for key, value in given.items() if key in Output.model_fields}
    base = data.get("output") or {}
    return merged | {"output": {**base, **output}} if output and isinstance(base, dict) else merged


def _problems(error: ValidationError, data: Mapping[str, Any], places: Places) -> list[Problem]:
    problems: dict[Problem, None] = {}
    errors = error.errors(include_url=False)
    misspelt = [each["loc"] for each in errors if each["type"] == "extra_forbidden"]
    for each in errors:
        path = each["loc"]
        if each["type"] == "too_short" and each["ctx"]["actual_length"] < len(each["input"]):
            continue  # said of entries that were refused, each with its own problem
        if each["type"] == "missing" and _is_there_misspelt(path, misspelt, data):
            continue  # the field that is there under another name has its own
        problems[Problem(path, _message(path, dict(each), data, places))] = None
    return list(problems)


def _is_there_misspelt(path: Path, misspelt: list[Path], data: Mapping[str, Any]) -> bool:
    """Whether a field is missing only since it, or the list of shots around it, is misspelt."""
    is_only_shot = "shots" not in data and path[:2] in (("shots", 0), ("shots",))

    def is_meant(said: Path) -> bool:
        at_top = len(said) == 1 and is_only_shot
        names = [str(path[-1])] if at_top or said[:-1] == path[:-1] else []
        names += ["shots"] if at_top else []
        return bool(get_close_matches(str(said[-1]), names, cutoff=0.6))

    return any(map(is_meant, misspelt))


def _message(path: Path, error: dict[str, Any], data: Mapping[str, Any], places: Places) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "extra_forbidden":
        return _unknown_field(path, data, places)
    if path == ("size",) or (path[:1] == ("size",) and error["type"] == "missing"):
        return "needs width and height in px, for example [832, 480] or 832x480"
    if error["type"] == "missing":
        if path[-1] == "seconds" and places.flags and not places.source:
            return "missing; say how long the film is, for example --seconds 5"
        return "missing; " + _FIXES.get(str(path[-1]), "add it")
    if path and path[-1] == "guidance" and error["type"] == "tuple_type":
        return f"needs a number, or a list with one per expert, got {describe(error['input'])}"
    return explain(error["type"], error["input"], error.get("ctx") or {})


_FIXES = {
    "prompt": "say what the shot shows, for example prompt: a red kite over the sea",
    "seconds": "say how long the shot is, for example seconds: 5",
    "shots": "give a prompt and seconds, or a list of shots",
}


#: The parts of a job, by their place.
_PARTS: dict[Path, type[Part]] = {
    ("output",): Output,
    ("audio",): Audio,
    ("accelerations",): Accelerations,
    ("accelerations", "adaptive"): Adaptive,
    ("accelerations", "rehash"): Rehash,
    ("accelerations", "slicing"): Slicing,
    ("accelerations", "fast_attention"): FastAttention,
}


def _unknown_field(path: Path, data: Mapping[str, Any], places: Places) -> str:
    name = path[-1]
    if path[0] == "shots" and len(path) > 2:
        return unknown(name, Shot.model_fields)
    if path[:-1] in _PARTS:
        what = "acceleration" if path[:-1] == ("accelerations",) else "field"
        return unknown(name, _PARTS[path[:-1]].model_fields, what)
    if path[0] == "loras" and len(path) > 2:
        return unknown(name, Lora.model_fields)
    if name in places.flags and "shots" in data:
        return "belongs to a shot, and this job file lists its shots; change it in the file"
    if name in SHORTHAND and "shots" in data:
        return "stands at the top beside shots; move it into a shot, or remove shots"
    return unknown(name, [*JobSpec.model_fields, *SHORTHAND])


def _read_text(path: FilePath) -> str:
    try:
        if path.is_dir():
            raise BadJob(f"{path} is a folder; give a job file")
        if path.exists() and not path.is_file():
            raise BadJob(f"{path} is not an ordinary file; give a job file")
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise BadJob(f"{path} does not exist{_near(path)}") from None
    except (OSError, ValueError) as error:
        raise BadJob(f"{path} cannot be read: {error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise BadJob(f"{path} is larger than {MAX_FILE_BYTES // 1000} kB; is it a job file?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = f"byte {error.start + 1}"
        raise BadJob(f"{path} is not UTF-8 text ({where}); save it as UTF-8") from None


def _near(path: FilePath) -> str:
    folder = path.parent
    found = sorted(each.name for each in folder.glob("*.y*ml")) if folder.is_dir() else []
    if not found:
        return ""
    shown = get_close_matches(path.name, found, n=1) + found
    more = ", ..." if len(found) > 5 else ""
    return f"; job files there: {', '.join(list(dict.fromkeys(shown))[:5])}{more}"


def _read_yaml(text: str, source: str) -> tuple[dict[str, Any], dict[Path, tuple[int, int]]]:
    """The mapping in a YAML text, and the line and column of every part. Raises BadJob."""
    reader = _Reader(source)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            raise BadJob(f"{source} is empty; give at least a prompt and seconds")
        if not isinstance(node, yaml.MappingNode):
            raise BadJob(f"{source} must be a mapping of names to values, like prompt: a red kite")
        return reader.build(loader, node, ()), reader.marks
    except yaml.YAMLError as error:
        raise BadJob(_yaml_mistake(source, error)) from None
    except RecursionError:
        raise BadJob(
            f"{source} is nested too deep; a job needs {MAX_DEPTH} levels at most"
        ) from None


def _yaml_mistake(source: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
    problem = getattr(error, "problem", None) or str(error).split("\n")[0]
    fix = "check the indentation, and put text that holds ': ' or ' #' in quotes"
    return f"{place}: this is not valid YAML: {problem}; {fix}"


class _Reader:
    """Builds plain data from YAML nodes and notes where each part stands."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.marks: dict[Path, tuple[int, int]] = {}
        self.nodes = 0

    def build(self, loader: yaml.SafeLoader, node: yaml.Node, path: Path) -> Any:
        self.nodes += 1
        self.marks.setdefault(path, (node.start_mark.line + 1, node.start_mark.column + 1))
        if self.nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise self._mistake(node, "too many or too deeply nested values; remove the aliases")
        if not isinstance(node, yaml.ScalarNode) and not node.tag.endswith((":map", ":seq")):
            raise self._mistake(node, f"the tag {node.tag} is not valid in a job; remove it")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(loader, node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(loader, item, (*path, i)) for i, item in enumerate(node.value)]
        return self._scalar(loader, node)

    def _mapping(self, loader: yaml.SafeLoader, node: yaml.MappingNode, path: Path) -> Any:
        built: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if not isinstance(key, str) or key_node.tag.endswith(":merge"):
                raise self._mistake(key_node, "names must be plain text; write the fields out")
            if key in built:
                raise self._mistake(key_node, f"{key!r} stands here twice; remove one")
            mark = key_node.start_mark
            self.marks[(*path, key)] = (mark.line + 1, mark.column + 1)
            built[key] = self.build(loader, value_node, (*path, key))
        return built

    def _scalar(self, loader: yaml.SafeLoader, node: yaml.Node) -> Any:
        if node.tag.endswith(":int") and re.match(r"[-+]?0[0-7_]", node.value):
            raise self._mistake(node, f"{node.value} starts with 0; write it without, or in quotes")
        try:
            return loader.construct_object(node, deep=True)
        except ValueError as error:
            raise self._mistake(node, f"{node.value[:60]!r} cannot be read: {error}") from None

    def _mistake(self, node: yaml.Node, message: str) -> BadJob:
        mark = node.start_mark
        return BadJob(f"{self.source}:{mark.line + 1}:{mark.column + 1}: {message}")
