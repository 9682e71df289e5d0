"""Which of many like cases ``make test`` runs: it has ten minutes, ``make long`` has them all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def few(cases: Iterable[Any], *kept: Any) -> list[Any]:
    """The cases of a parametrization, all but those that are ``kept`` marked long. A tuple is a
    case of several arguments."""
    found = list(cases)
    assert all(each in found for each in kept), "what is kept is no case"
    return [each if each in kept else _long(each) for each in found]


def _long(case: Any) -> Any:
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.long)
