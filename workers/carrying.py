"""What the accelerations keep with a tile, apart from what its neighbours read.

It can be far larger than the latents (features of every layer, say), and only the tile's own next
step wants it: so it stays where it was made (``workers.shelf``), or travels as an object of its
own, and rejoins its output in the store, where a result is one file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jobs.arrays import Bundle
from jobs.units import MUCH_MEMORY, StepTask, Task

#: Where a step's output has what the accelerations keep with the tile.
ACCEL = "accel."

#: How the names of what is latents, and not features, begin.
_LATENTS = "adaptive."


def apart(output: Bundle) -> tuple[Bundle, Bundle | None]:
    """What everybody reads of a unit's output, and what is its tile's own, if anything."""
    own = {name for name in output.arrays if name.startswith(ACCEL)}
    if not own:
        return output, None
    return _part(output, output.arrays.keys() - own, output.meta), _part(output, own, {})


def much(kept: Mapping[str, int]) -> bool:
    """Whether what accelerations keep, bytes by name, is features that are worth holding apart.
    Latents that decide on skips are not: they are no more than what others read of the output."""
    features = (size for name, size in kept.items() if not name.startswith(_LATENTS))
    return sum(features) >= MUCH_MEMORY


def remembers(output: Bundle) -> bool:
    """Whether much of a unit's output is its tile's own."""
    arrays = output.arrays.items()
    return much({n.removeprefix(ACCEL): a.nbytes for n, a in arrays if n.startswith(ACCEL)})


def together(output: Bundle, memory: Bundle | None) -> Bundle:
    """The output as it was before ``apart``."""
    if memory is None:
        return output
    return Bundle(output.arrays | memory.arrays, output.dtypes | memory.dtypes, output.meta)


def with_memory(task: Task, inputs: Sequence[Bundle], memory: Bundle | None) -> list[Bundle]:
    """A unit's inputs, where the output of its tile's step before has its memory again."""
    inputs = list(inputs)
    if memory is not None:
        assert isinstance(task, StepTask), "only tiles remember"
        place = len(inputs) - len(task.covering) + task.covering.index(task.window)
        inputs[place] = together(inputs[place], memory)
    return inputs


def _part(bundle: Bundle, names: set[str], meta: dict[str, str]) -> Bundle:
    arrays = {name: each for name, each in bundle.arrays.items() if name in names}
    return Bundle(arrays, {name: bundle.dtypes[name] for name in arrays}, meta)
