"""The search for an attention plan: its loss, its choices, its interruptions."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from accel.attention_search import (
    Found,
    HostShelf,
    Progress,
    Search,
    SearchFile,
    relative_loss,
    search,
)
from jobs.attention_plan import STRATEGIES, AttentionPlan
from jobs.errors import BadJob
from tests.accel.fast_attention_helpers import (
    LAYERS,
    WINDOW,
    forward,
    plain_processors,
    start,
    tiny_wan,
)
from tests.marks import few

SETTINGS = Search(steps=5, window=WINDOW, delta=0.6)
GUIDANCE = 3.0


class ToySample:
    """A guided run of the tiny Wan, Euler's steps."""

    def __init__(self, model, seed: int) -> None:
        self.model, self.x, self.step, self.predictions = model, start().roll(seed, -1), 0, []
        self.calls = 0

    def predict(self, branch) -> torch.Tensor:
        self.calls += 1
        found = {}
        for name in ("cond", "uncond"):
            with branch(name):
                found[name] = forward(self.model, self.x, self.step, name)
        return found["uncond"] + GUIDANCE * (found["cond"] - found["uncond"])

    def advance(self, prediction: torch.Tensor) -> None:
        self.predictions.append(prediction)
        self.x, self.step = self.x - 0.3 * prediction, self.step + 1


def samples(model) -> list[ToySample]:
    return [ToySample(model, seed) for seed in range(2)]


def searched(settings: Search = SETTINGS, **more):
    model = tiny_wan()
    chosen = samples(model)
    return search(model, chosen, settings, **more), chosen


# -- the loss


def test_the_loss_by_hand() -> None:
    reference = torch.tensor([1.0, -2.0, 4.0, -1.0, 0.0])
    output = torch.tensor([2.0, -1.0, 4.0, 1.0, 0.0])
    assert relative_loss(output, reference) == pytest.approx((0.5 + 0.5 + 0 + 2 + 0) / 5, abs=1e-5)
    assert relative_loss(reference, output) == relative_loss(output, reference)


def test_negative_numbers_are_no_worse_than_positive_ones() -> None:
    """The authors' code divides by the larger signed number."""
    a, b = torch.tensor([-1.0, -2.0, -1e-7]), torch.tensor([-1.1, -1.9, 1.0])
    assert relative_loss(a, b) == pytest.approx(relative_loss(-a, -b))
    assert 0 < relative_loss(a, b) < 1


# -- its choices


class ByTheBook:
    """The same search with plain processors: every candidate is run, nothing is clever."""

    def __init__(self, settings: Search) -> None:
        self.settings, self.model = settings, tiny_wan()
        self.xs = [sample.x for sample in samples(self.model)]
        self.losses: list[float] = []
        self.memories = [[({}, {}) for _ in range(LAYERS)] for _ in self.xs]

    @torch.no_grad()
    def output(self, number: int, step: int, row, *, remember: bool) -> torch.Tensor:
        with plain_processors(self.model) as processors:
            memory = self.memories[number]
            for processor, (residual, output) in zip(processors, memory, strict=True):
                processor.residual, processor.output = dict(residual), dict(output)
            found = []
            for branch in ("cond", "uncond"):
                for processor, strategy in zip(processors, row, strict=True):
                    processor.strategy, processor.branch = strategy, branch
                found.append(forward(self.model, self.xs[number], step, branch))
            if remember:
                self.memories[number] = [(p.residual, p.output) for p in processors]
        return found[1] + GUIDANCE * (found[0] - found[1])

    def loss(self, step: int, row) -> float:
        losses = []
        for number in range(len(self.xs)):
            theirs = self.output(number, step, ["full"] * LAYERS, remember=False)
            ours = self.output(number, step, row, remember=False)
            ratio = (ours - theirs).abs() / (torch.maximum(ours.abs(), theirs.abs()) + 1e-6)
            losses.append(float(ratio.clamp(max=10).mean()))
        return sum(losses) / len(losses)

    def choose(self, step: int) -> list[str]:
        row = ["full"] * LAYERS
        for layer in range(LAYERS if step else 0):
            kinds = [s for s in STRATEGIES if self.settings.guided or "branches" not in s]
            tried = {s: self.loss(step, [*row[:layer], s, *row[layer + 1 :]]) for s in kinds}
            allowed = (layer + 1) / LAYERS * self.settings.delta
            fits = [s for s in kinds if tried[s] < allowed]
            row[layer] = fits[0] if fits else "full"
        return row

    def plan(self) -> AttentionPlan:
        rows = []
        for step in range(self.settings.steps):
            rows.append(tuple(self.choose(step)))
            self.losses.append(self.loss(step, rows[-1]))
            for number in range(len(self.xs)):
                output = self.output(number, step, rows[-1], remember=True)
                self.xs[number] = self.xs[number] - 0.3 * output
        return AttentionPlan(tuple(rows), self.settings.window)


OTHERS = [(0.4, True), (0.8, True), (0.6, False)]


@pytest.mark.parametrize(
    ("delta", "guided"),
    few([(0.6, True), (0.8, False), *OTHERS], (0.8, False)),
)
def test_it_chooses_what_trying_everything_would(delta: float, guided: bool) -> None:
    settings = dataclasses.replace(SETTINGS, delta=delta, guided=guided)
    (plan, found), _ = searched(settings)
    book = ByTheBook(settings)
    assert plan == book.plan()
    assert found.losses == pytest.approx(book.losses, rel=1e-3)
    used = {strategy for row in plan.rows[1:] for strategy in row}
    assert len(used) >= (2 if delta == 0.4 else 3), f"a search among {used} alone says little"


def test_the_first_step_is_full_and_nothing_else_has_to_be() -> None:
    (generous, _), _ = searched(dataclasses.replace(SETTINGS, delta=9.9))
    assert generous.rows == (("full",) * LAYERS, *((("share_steps",) * LAYERS,) * 4))
    (strict, found), chosen = searched(dataclasses.replace(SETTINGS, delta=0.0))
    assert strict.rows == (("full",) * LAYERS,) * 5
    assert found.losses == [0.0] * 5
    candidates = len(STRATEGIES) - 1
    assert chosen[0].calls == 5 + 4 * (1 + LAYERS * candidates)


def test_without_guidance_there_is_no_branch_to_share_with() -> None:
    (plan, _), _ = searched(dataclasses.replace(SETTINGS, guided=False))
    assert not any("branches" in strategy for row in plan.rows for strategy in row)


def test_the_search_went_where_a_render_with_its_plan_goes() -> None:
    """Keeping everything during the search and only what is read afterwards: the same bits."""
    from accel.fast_attention import FastAttention, apply
    from accel.handle import TileStep
    from jobs.units import Unit

    (plan, _), (first, _) = searched()
    model = tiny_wan()
    again, carried = ToySample(model, 0), {}
    handle = apply(model, FastAttention(stages=(plan,)))
    for step in range(plan.steps):
        tile = TileStep(unit=Unit("step", 0, step=step), steps=plan.steps, carried=carried)
        again.advance(again.predict(lambda branch, tile=tile: handle.run(tile, branch)))
        carried = tile.kept
    for ours, theirs in zip(again.predictions, first.predictions, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.long
def test_losses_and_progress_are_told() -> None:
    told: list[Progress] = []
    (plan, found), _ = searched(progress=told.append)
    assert [(p.step, p.layer) for p in told] == [(s, n) for s in range(1, 5) for n in range(LAYERS)]
    assert [p.strategy for p in told] == [s for row in plan.rows[1:] for s in row]
    assert found.losses[1:] == [p.loss for p in told if p.layer == LAYERS - 1]
    assert all(0 < loss < SETTINGS.delta for loss in found.losses[1:])
    assert all(p.loss < (p.layer + 1) / LAYERS * SETTINGS.delta for p in told)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_wan()
    before = [(name, dict(vars(m))) for name, m in model.named_modules()]
    search(model, samples(model), dataclasses.replace(SETTINGS, steps=2))
    assert [(name, dict(vars(m))) for name, m in model.named_modules()] == before


@pytest.mark.parametrize("change", [{"steps": 0}, {"delta": -0.1}, {"delta": math.nan}])
def test_settings_that_cannot_be_are_refused(change: dict) -> None:
    with pytest.raises(BadJob, match="a search needs steps and a delta"):
        dataclasses.replace(SETTINGS, **change)
    with pytest.raises(BadJob, match="at least one calibration sample"):
        search(tiny_wan(), [], SETTINGS)


# -- its interruptions


class Interrupted(Exception):
    pass


def test_a_search_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    file = SearchFile(tmp_path / "deep" / "search.json", {"model": "m", "window": WINDOW})

    def stop(progress: Progress) -> None:
        if (progress.step, progress.layer) == (3, 1):
            raise Interrupted

    with pytest.raises(Interrupted):
        searched(found=file.read(), finished=file.write, progress=stop)
    assert len(file.read().rows) == 3
    told: list[Progress] = []
    (resumed, found), _ = searched(found=file.read(), finished=file.write, progress=told.append)
    assert {p.step for p in told} == {3, 4}, "finished steps are not searched again"
    (whole, expected), _ = searched()
    assert (resumed, found) == (whole, expected)
    assert file.read() == expected


def test_another_searchs_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "search.json"
    SearchFile(path, {"model": "m"}).write(Found([("full",)], [0.0]))
    with pytest.raises(BadJob, match="is another search's"):
        SearchFile(path, {"model": "n"}).read()
    path.write_text("{")
    with pytest.raises(BadJob, match="is no search"):
        SearchFile(path, {"model": "m"}).read()


class OnDevice(torch.Tensor):
    """As if it lay on a device: it tells when it is brought to the host."""

    def cpu(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor) + 1


def test_what_is_carried_lies_with_the_host_and_is_read_on_the_device() -> None:
    shelf = HostShelf(torch.device("meta"))
    shelf.update({"residual.0": torch.zeros(2).as_subclass(OnDevice)})
    shelf["output.0"] = torch.zeros(3).as_subclass(OnDevice)
    assert all(bool((tensor == 1).all()) for tensor in shelf.data.values())
    assert {shelf[name].device.type for name in shelf} == {"meta"}
    assert shelf.keys() >= {"residual.0", "output.0"}


def test_a_search_carries_its_samples_so(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[str] = []
    put = HostShelf.__setitem__

    def watched(self: HostShelf, name: str, tensor: torch.Tensor) -> None:
        kept.append(name)
        put(self, name, tensor)

    monkeypatch.setattr(HostShelf, "__setitem__", watched)
    searched()
    layers = {tuple(name.split(".")[1:4]) for name in kept}
    for branch in ("cond", "uncond"):
        for kind in ("output", "residual"):
            assert {(branch, kind, str(n)) for n in range(LAYERS)} <= layers
