"""The scheduler's unit tests neither sleep nor start Ray."""

from __future__ import annotations

import importlib.util
import sys
import time
from typing import NoReturn

import pytest


def _forbidden(*_: object, **__: object) -> NoReturn:
    raise AssertionError("a unit test must neither sleep nor start Ray; mark it `ray`")


@pytest.fixture(autouse=True)
def pure(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("ray") is not None:
        return
    monkeypatch.setattr(time, "sleep", _forbidden)
    if "ray" in sys.modules and importlib.util.find_spec("ray") is not None:
        monkeypatch.setattr(sys.modules["ray"], "init", _forbidden)
