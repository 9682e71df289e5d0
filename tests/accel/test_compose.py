"""The order in which accelerations attach and leave."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch

from accel.compose import apply, attached
from accel.handle import Acceleration, TileStep
from jobs.accelerations import Accelerations
from jobs.units import Unit

TILE = TileStep(unit=Unit("step", 0))


def structure(model: torch.nn.Module) -> list[tuple]:
    """The module graph and all hooks."""
    return [
        (name, type(m), m.forward.__func__, len(m._forward_hooks), len(m._forward_pre_hooks))
        for name, m in model.named_modules()
    ]


def small_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU(), torch.nn.Linear(4, 4))


@dataclass(frozen=True)
class Loud:
    name: str
    log: list[str]
    fails: bool = False


class LoudHandle:
    def __init__(self, config: Loud) -> None:
        self.config = config

    @contextmanager
    def run(self, tile: TileStep, branch: str):
        self.config.log.append(f"enter {self.config.name} {branch}")
        yield
        self.config.log.append(f"leave {self.config.name}")

    def remove(self) -> None:
        self.config.log.append(f"remove {self.config.name}")


def loud(name: str, log: list[str], fails: bool = False) -> Acceleration:
    def attach(model: torch.nn.Module, config: Loud) -> LoudHandle:
        if config.fails:
            raise ValueError("does not fit")
        log.append(f"apply {config.name}")
        return LoudHandle(config)

    return Acceleration(name=name, config=Loud(name, log, fails), apply=attach)


def test_nothing_applied_changes_nothing() -> None:
    model, x = small_model(), torch.randn(3, 4)
    before, expected = structure(model), model(x)
    applied = apply(model, attached(Accelerations()))
    with applied.run(TILE, "cond"):
        assert torch.equal(model(x), expected)
    assert structure(model) == before
    applied.remove()
    assert structure(model) == before


def test_order_of_application_and_removal() -> None:
    log: list[str] = []
    applied = apply(small_model(), (loud("a", log), loud("b", log)))
    with applied.run(TILE, "uncond"):
        log.append("model")
    applied.remove()
    assert log == [
        "apply a", "apply b", "enter a uncond", "enter b uncond", "model", "leave b", "leave a",
        "remove b", "remove a",
    ]  # fmt: skip


def test_one_that_does_not_fit_leaves_nothing_attached() -> None:
    log: list[str] = []
    with pytest.raises(ValueError, match="does not fit"):
        apply(small_model(), (loud("a", log), loud("b", log, fails=True)))
    assert log == ["apply a", "remove a"]
