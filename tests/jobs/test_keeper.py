from __future__ import annotations

import pickle

import numpy as np
import pytest

from jobs import errors
from jobs.arrays import Bundle
from jobs.errors import DamagedRecord, StoreError
from jobs.keeper import StoreKeeper
from jobs.results import Results
from jobs.store import Store

RECIPE = "c" * 64


@pytest.fixture
def keeper(tmp_path):
    return StoreKeeper(Store.open(tmp_path / "store").uri)


def test_arrays_come_back(keeper):
    bundle = Bundle.of({"x": np.arange(4, dtype=np.uint16)}, {"x": "bfloat16"}, {"shot": "1"})
    record = keeper.store_bundle(RECIPE, bundle, "step", "n", "w")
    assert record.ext == "arrow" and record == keeper.store_bundle(RECIPE, bundle, "step", "n", "v")
    found = keeper.load_bundle(RECIPE)
    assert found.arrays["x"].tolist() == [0, 1, 2, 3]
    assert (found.dtypes, found.meta) == (bundle.dtypes, bundle.meta)


def test_bytes_come_back(keeper, tmp_path):
    record = keeper.store_bytes(RECIPE, b"mp4", "decode", "n", "w", {"frames": ["a"]}, "mp4")
    assert record.extra == {"frames": ["a"]} and keeper.load_bytes(RECIPE) == b"mp4"
    assert Results(Store.open(tmp_path / "store")).path(RECIPE).suffix == ".mp4"


def test_delete_takes_those_that_exist(keeper):
    keeper.store_bytes(RECIPE, b"x", "step", "n", "w", None)
    keeper.delete([RECIPE, "d" * 64])
    with pytest.raises(StoreError, match="deleted"):
        keeper.load_bytes(RECIPE)


def test_a_keeper_makes_no_store(tmp_path):
    with pytest.raises(StoreError, match="there is no store"):
        StoreKeeper(str(tmp_path / "x"))


def test_bytes_that_are_no_arrays_are_damage(keeper):
    keeper.store_bytes(RECIPE, b"mp4", "decode", "n", "w")
    with pytest.raises(DamagedRecord, match="not a whole bundle"):
        keeper.load_bundle(RECIPE)


@pytest.mark.parametrize("kind", ["StoreError", "StoreFull", "StoreConflict", "DamagedRecord"])
def test_errors_can_be_sent(kind):
    error = pickle.loads(pickle.dumps(getattr(errors, kind)("what, where, fix")))
    assert type(error).__name__ == kind and str(error) == "what, where, fix"
