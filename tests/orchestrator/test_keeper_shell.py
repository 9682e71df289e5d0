"""The store keeper's shell, called directly: Ray adds nothing to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.arrays import Bundle
from jobs.store import Store
from orchestrator.actors import keeper_shell
from orchestrator.cluster import install_root
from workers.films import read_film
from workers.video import encode_segment

RECIPES = ["a" * 64, "b" * 64]


@pytest.fixture
def keeper(tmp_path: Path):
    Store.open(tmp_path / "store")
    return keeper_shell()(install_root(), str(tmp_path / "store"))


def piece(quality: int) -> Bundle:
    frames = np.random.default_rng(1).integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)
    segment = encode_segment(frames, fps=8, codec="h264", quality=quality)
    return Bundle.of({"segment": np.frombuffer(segment, np.uint8)}, meta={"codec": "h264"})


def store(keeper, *qualities: int) -> None:
    for recipe, quality in zip(RECIPES, qualities, strict=True):
        assert keeper.store(recipe, "decode", "n" * 12, "w1", False, piece(quality))[0] == "stored"


def test_pieces_that_were_encoded_otherwise_are_encoded_again(keeper, tmp_path: Path) -> None:
    """As after an upgrade of the encoder: without that the film could never be joined."""
    out = tmp_path / "film.mp4"
    store(keeper, 18, 45)
    assert keeper.stitch(RECIPES, str(out), 8, "h264", {}) == ("damaged", RECIPES)
    assert not out.exists()
    store(keeper, 45, 45)
    assert keeper.stitch(RECIPES, str(out), 8, "h264", {})[0] == "stitched"
    assert read_film(out).pixel_frames == 8


def test_two_writers_of_one_class_that_disagree_are_reported(keeper) -> None:
    """Same recipe and same numerics must mean same bits: who breaks that is not to be trusted."""
    store(keeper, 18, 18)
    args = ("n" * 12, "w2", False)
    what, (record, warnings) = keeper.store(RECIPES[0], "decode", *args, piece(45))
    assert (what, record.writer) == ("stored", "w1")
    assert len(warnings) == 1 and "w1 and w2 disagree" in warnings[0]
    _, (_, warnings) = keeper.store(RECIPES[1], "decode", *args, piece(18))
    assert warnings == []
    _, (_, warnings) = keeper.store(RECIPES[0], "decode", "m" * 12, "w3", False, piece(45))
    assert warnings == [], "another class may differ"


def test_a_film_that_cannot_be_written_is_named_once(keeper, tmp_path: Path) -> None:
    store(keeper, 18, 18)
    out = str(tmp_path / "nowhere" / "film.mp4")
    what, message = keeper.stitch(RECIPES, out, 8, "h264", {})
    assert what == "failed"
    assert message.count(out) == 1 and "create it first" in message
