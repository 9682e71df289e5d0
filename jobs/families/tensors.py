"""Whether a component's files hold just the tensors that its config implies. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.errors import CannotRunHere
from jobs.families.family import Shape, Shapes

#: The text encoder's embedding under its two names: one may be missing, they are one tensor.
SHARED, EMBED = "shared.weight", "encoder.embed_tokens.weight"

_MOST_NAMED = 5


def check_tensors(component: str, file: str, found: Mapping[str, Shape], expected: Shapes) -> None:
    """Raise CannotRunHere, naming file and tensors, unless it has just what its config implies."""
    tied = {SHARED: EMBED, EMBED: SHARED}
    missing = [name for name in expected if name not in found and tied.get(name) not in found]
    if missing:
        shape = list(expected[missing[0]])
        raise CannotRunHere(
            f"{file}: weight {missing[0]} is missing; expected {shape}{_others(missing)}; copy "
            "the model again"
        )
    for name, expects in expected.items():
        if found.get(name, expects) != expects:
            raise CannotRunHere(
                f"{file}: weight {name} has shape {list(found[name])}, but config.json implies "
                f"{list(expects)}"
            )
    extra = [name for name in found if name not in expected and not _ignored(component, name)]
    if extra:
        raise CannotRunHere(
            f"{file}: its weights have more than config.json implies: {extra[0]}{_others(extra)}; "
            "the two are not of one model"
        )


def _others(names: list[str]) -> str:
    if len(names) == 1:
        return ""
    shown = ", ".join(names[1:_MOST_NAMED])
    more = len(names) - _MOST_NAMED
    return f" (and {shown}" + (f" and {more} more" if more > 0 else "") + ")"


def _ignored(component: str, name: str) -> bool:
    """Tensors that diffusers leaves aside by design."""
    return component == "transformer" and "norm_added_q" in name
