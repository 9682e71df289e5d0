"""Says what is wrong with a job: all mistakes in one message, each with its place and fix."""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.errors import BadJob

#: Where a value stands in a spec: ("shots", 0, "prompt").
Path = tuple[str | int, ...]

_MOST_SHOWN = 30

#: Options that are not named as the field is.
_OPTIONS = {"loras": "lora"}


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake. ``message`` says what is wrong, what is valid, and the fix."""

    path: Path
    message: str


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Where the parts of a spec were written. Equal to all others: no part of what a job is."""

    source: str = ""  # a file's name, or "" for flags and code
    marks: Mapping[Path, tuple[int, int]] = field(default_factory=dict)  # line, column from 1
    flags: frozenset[str] = frozenset()  # top fields that were given as flags

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Places)

    def __hash__(self) -> int:
        return 0

    def name(self, path: Path) -> str:
        """``film.yaml:3:5: shots[1].prompt``, or ``--prompt``."""
        written = self._written(path)
        if written and written[0] in self.flags:
            return "--" + _OPTIONS.get(name := str(written[0]), name.replace("_", "-"))
        dotted = _dotted(written)
        if not self.source:
            return dotted
        line, column = self.mark(path)
        return f"{self.source}:{line}:{column}: {dotted}".removesuffix(": ")

    def mark(self, path: Path) -> tuple[int, int]:
        """Line and column, from 1, of a part, or of the nearest part around it."""
        written = self._written(path)
        around = (written[:length] for length in range(len(written), -1, -1))
        return next((self.marks[part] for part in around if part in self.marks), (1, 1))

    def _written(self, path: Path) -> Path:
        """Undoes the shorthand: the only shot's prompt may have been written at the top, and what
        flags say of a shot, they say of all."""
        if path[:1] == ("output",) and len(path) > 1 and path[1] in self.flags:
            return path[1:]
        if path[:1] != ("shots",) or ("shots",) in self.marks or "shots" in self.flags:
            return path
        short = len(path) > 2 and (path[2:] in self.marks or path[2] in self.flags)
        alone = path[:2] == ("shots", 0) and (self.source or self.flags)
        return path[2:] if short or alone else path


def _dotted(path: Path) -> str:
    text = ""
    for part in path:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part[:60]}" if text else part[:60]
    return text


def bad_job(problems: Sequence[Problem], places: Places) -> BadJob:
    """One error that lists all problems, in the order in which they were written."""
    ordered = sorted(problems, key=lambda each: places.mark(each.path))
    named = (f"{places.name(each.path)}: {each.message}" for each in ordered)
    lines = list(dict.fromkeys(named))  # a flag that is wrong for one shot is for all
    if len(lines) == 1:
        return BadJob(lines[0])
    shown = [f"  {line}" for line in lines[:_MOST_SHOWN]]
    if len(lines) > _MOST_SHOWN:
        shown.append(f"  and {len(lines) - _MOST_SHOWN} more")
    return BadJob("\n".join([f"{len(lines)} problems in this job:", *shown]))


def unknown(name: object, valid: Iterable[str], what: str = "field") -> str:
    """``unknown field 'promt'; did you mean 'prompt'? valid: ...``"""
    names = list(valid)
    said = str(name)[:60]
    close = difflib.get_close_matches(said, names, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown {what} {said!r}; {hint}valid: {', '.join(names)}"


def explain(kind: str, value: Any, context: Mapping[str, Any]) -> str:
    """A pydantic error in plain words: what is needed, and what was found."""
    if kind in _NEEDED:
        return f"needs {_NEEDED[kind]}, got {describe(value)}{_type_fix(kind, value)}"
    if kind in _LIMITS:
        name, words = _LIMITS[kind]
        return f"must be {words} {context[name]:g}, got {describe(value)}"
    if kind == "literal_error":
        valid = str(context["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        if isinstance(value, str):
            return unknown(value, valid, "value")
        which = "one of " if len(valid) > 1 else ""
        return f"must be {which}{', '.join(valid)}, got {describe(value)}"
    if kind in ("too_short", "too_long", "string_too_short", "string_too_long"):
        most, least = context.get("max_length"), context.get("min_length")
        return (
            f"may have at most {most} entries or characters"
            if least is None
            else f"needs at least {least} of them"
        )
    return f"is not valid ({kind}), got {describe(value)}"


_NEEDED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping of names to values",
    "model_type": "a mapping of names to values",
    "model_attributes_type": "a mapping of names to values",
}

_LIMITS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def describe(value: Any) -> str:
    """A value as a person would name it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"the yes/no value {str(value).lower()}"
    if isinstance(value, str):
        return f"the text {value[:60]!r}"
    if isinstance(value, datetime.date):
        return f"the date {value}"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, Mapping):
        return "a mapping"
    return f"{value}"[:60]


def _type_fix(kind: str, value: Any) -> str:
    if (
        kind == "string_type"
        and not isinstance(value, list | tuple | Mapping)
        and value is not None
    ):
        return "; put it in quotes"
    if kind in ("int_type", "float_type") and isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return ""
        whole = number.is_integer() and abs(number) < 1e15
        return f"; write {int(number) if whole else number} without quotes"
    return ""
