"""What the accelerations keep with a tile, apart from what its neighbours read.

It can be far larger than the latents (features of every layer, say), and only the tile's own next
step wants it: so it stays where it was made (``workers.shelf``), or travels as an object of its
own, and rejoins its output in the store, where a result is one file.
"""

from __future__ import annotations

from collections.abc import Sequence

from jobs.arrays import Bundle
from jobs.units import MUCH_MEMORY, StepTask, Task

#: Where a step's output has what the accelerations keep with the tile.
ACCEL = "accel."


def apart(output: Bundle) -> tuple[Bundle, Bundle | None]:
    """What everybody reads of a unit's output, and what is its tile's own, if anything."""
    own = {name for name in output.arrays if name.startswith(ACCEL)}
    if not own:
        return output, None
    return _part(output, output.arrays.keys() - own, output.meta), _part(output, own, {})


def remembers(output: Bundle) -> bool:
    """Whether much of a unit's output is its tile's own."""
    own = (array.nbytes for name, array in output.arrays.items() if name.startswith(ACCEL))
    return sum(own) >= MUCH_MEMORY


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
