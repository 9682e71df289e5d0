"""The search for a plan of fast attention: the greedy one of DiTFastAttn (arXiv 2406.08552).

In order of sampling, and layer by layer, the cheapest strategy is taken with which the whole
model's output at that step, layers before it already changed, is nearer to the full computation
than layer / layers * delta. Nothing that is tried leaves a trace; one real pass with what was
chosen then takes the step. The first step is always full.

Unlike the authors' code: the loss divides by the larger of the two magnitudes, where theirs takes
the larger of two signed numbers, and the output is the guided one, from which the sampler steps.
"""

from __future__ import annotations

import json
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from accel.fast_attention import FastAttention, apply
from accel.handle import Branch, TileStep
from accel.video_transformers import video_transformer
from jobs.attention_plan import (
    STRATEGIES,
    AttentionPlan,
    Extent,
    Strategy,
    shares_branches,
)
from jobs.errors import BadJob
from jobs.files import replace_file
from jobs.units import Unit

Row = tuple[Strategy, ...]

#: An element's relative error counts as no more than this.
MOST_ERROR = 10.0

FORMAT = 1


class Sample(Protocol):
    """A calibration sample: one tile on its way through all steps, from its first one."""

    def predict(self, branch: Callable[[Branch], AbstractContextManager[None]]) -> torch.Tensor:
        """The model's output at the sample's step, guidance included, each pass of the model in
        ``branch``. Changes nothing."""
        ...

    def advance(self, prediction: torch.Tensor) -> None:
        """Take the step to the next one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What is searched for. ``delta``: the loss that all layers together may cost at a step."""

    steps: int
    window: Extent  # tokens
    delta: float
    guided: bool = True  # else there is no branch to share with

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.delta < MOST_ERROR:
            raise BadJob(f"a search needs steps and a delta from 0 to {MOST_ERROR}: {self}")

    @property
    def candidates(self) -> Row:
        """Cheapest first; ``full`` is what is left when none of them will do."""
        return tuple(s for s in STRATEGIES[:-1] if self.guided or not shares_branches(s))


@dataclass(frozen=True, slots=True)
class Progress:
    """A layer of a step is decided."""

    step: int
    steps: int
    layer: int
    layers: int
    strategy: Strategy
    loss: float  # of the step's output with all that is chosen up to this layer


@dataclass(slots=True)
class Found:
    """What a search has found so far: the rows of the finished steps, and the loss of each."""

    rows: list[Row] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


class HostShelf(UserDict[str, torch.Tensor]):
    """Tensors that lie in the host's memory, and come to ``device`` as they are read. All layers'
    residuals and outputs of a sample are gigabytes, of which a pass reads a part, layer by
    layer."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def __setitem__(self, name: str, tensor: torch.Tensor) -> None:
        super().__setitem__(name, tensor.cpu())

    def __getitem__(self, name: str) -> torch.Tensor:
        return super().__getitem__(name).to(self._device)


def relative_loss(output: torch.Tensor, reference: torch.Tensor) -> float:
    """Mean over the elements of |O - O'| / max(|O|, |O'|), each at most 10: 0 where they are
    equal, 2 where they are opposite."""
    ours, theirs = output.double(), reference.double()
    larger = torch.maximum(ours.abs(), theirs.abs()) + 1e-6
    return float(((ours - theirs).abs() / larger).clamp(0, MOST_ERROR).mean())


def search(
    model: torch.nn.Module,
    samples: Sequence[Sample],
    settings: Search,
    *,
    found: Found | None = None,
    finished: Callable[[Found], None] = lambda found: None,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> tuple[AttentionPlan, Found]:
    """The plan, and how it was found.

    ``found`` is what an interrupted search has left: its steps are taken again, not searched again.
    ``finished`` is told after every step, ``progress`` after every layer.
    """
    found = found or Found()
    walk = _Walk(model, samples, settings)
    for row in found.rows:
        walk.take(row)
    while len(found.rows) < settings.steps:
        row, loss = walk.choose(progress)
        walk.take(row)
        found.rows.append(row)
        found.losses.append(loss)
        finished(found)
    return AttentionPlan(tuple(found.rows), settings.window), found


class _Walk:
    """The samples, going through the steps together."""

    def __init__(self, model: torch.nn.Module, samples: Sequence[Sample], settings: Search) -> None:
        if not samples:
            raise BadJob("a search needs at least one calibration sample")
        self._model, self._samples, self._settings = model, samples, settings
        self._layers = len(video_transformer(model).layers(model))
        self._rows: list[Row] = []
        self._device = next(model.parameters()).device
        self._carried = [HostShelf(self._device) for _ in samples]

    def choose(self, progress: Callable[[Progress], None]) -> tuple[Row, float]:
        """The strategies of the next step, and their loss."""
        row: list[Strategy] = ["full"] * self._layers
        loss = 0.0
        if not self._rows:  # nothing to share yet
            return tuple(row), loss
        references = [output for output, _ in self._outputs(tuple(row))]
        for layer in range(self._layers):
            allowed = (layer + 1) / self._layers * self._settings.delta
            for strategy in self._settings.candidates:
                tried = (*row[:layer], strategy, *row[layer + 1 :])
                losses = map(relative_loss, (out for out, _ in self._outputs(tried)), references)
                mean = sum(losses) / len(references)
                if mean < allowed:
                    row[layer], loss = strategy, mean
                    break
            step, steps = len(self._rows), self._settings.steps
            progress(Progress(step, steps, layer, self._layers, row[layer], loss))
        return tuple(row), loss

    def take(self, row: Row) -> None:
        """One real step of every sample."""
        # What would be read after this step is not known yet. Two steps more make sure that all
        # that could be is kept: one that shares every output, one that reads every residual.
        layers = len(row)
        ahead: tuple[Row, ...] = (("share_steps",) * layers, ("window",) * layers)
        for number, (output, left) in enumerate(self._outputs(row, ahead)):
            self._samples[number].advance(output)
            self._carried[number] = left
        self._rows.append(row)

    def _outputs(
        self, row: Row, ahead: tuple[Row, ...] = ()
    ) -> Iterator[tuple[torch.Tensor, HostShelf]]:
        """Each sample's output at the next step, computed by ``row``, and what it left."""
        plan = AttentionPlan((*self._rows, row, *ahead), self._settings.window)
        handle = apply(self._model, FastAttention(stages=(plan,)))
        try:
            unit = Unit("step", 0, step=len(self._rows))
            for sample, carried in zip(self._samples, self._carried, strict=True):
                left = HostShelf(self._device)
                tile = TileStep(unit=unit, steps=plan.steps, carried=carried, kept=left)
                yield sample.predict(partial(handle.run, tile)), left
        finally:
            handle.remove()


# -- a search that goes on where it was interrupted


@dataclass(frozen=True, slots=True)
class SearchFile:
    """The finished steps of a search, in a file; ``made_for`` tells one search from others (model,
    prompts, settings)."""

    path: Path
    made_for: Mapping[str, Any]

    def read(self) -> Found:
        """What is there to go on from. Raises BadJob if the file is another search's."""
        try:
            record = json.loads(self.path.read_text("utf-8"))
        except FileNotFoundError:
            return Found()
        except ValueError as error:
            raise BadJob(f"{self.path} is no search for an attention plan: {error}") from error
        if record.get("format") != FORMAT or record.get("made_for") != self._plain():
            raise BadJob(
                f"{self.path} is another search's ({record.get('made_for')}, not {self._plain()}); "
                "delete it or name another file"
            )
        return Found([tuple(row) for row in record["rows"]], list(record["losses"]))

    def write(self, found: Found) -> None:
        record = {"format": FORMAT, "made_for": self._plain()}
        text = json.dumps({**record, "rows": found.rows, "losses": found.losses}) + "\n"
        try:
            replace_file(self.path, text)
        except OSError as error:
            where = f"{self.path} cannot be written: {error.strerror}"
            raise BadJob(f"{where}; choose another folder") from error

    def _plain(self) -> Any:
        return json.loads(json.dumps(self.made_for))
