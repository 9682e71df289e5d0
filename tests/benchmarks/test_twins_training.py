"""Quality by training: what is compared with what, and that a kept model can be rendered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.twins import MEASURES, worse_on
from benchmarks.twins_training import assembled, plot, share_of_training
from jobs.model_folder import inspect_model, resolve_model


def row(steps: int, share: float, **other: float) -> dict[str, Any]:
    shares = dict.fromkeys(MEASURES, share) | other
    return {"steps": steps, "share": shares, "mean": sum(shares.values()) / len(shares)}


def test_the_share_of_its_twins_training_that_a_pyramid_needs() -> None:
    plain = [row(0, 0.1), row(500, 0.7), row(1000, 0.6)]
    pyramid = [row(0, 0.1), row(250, 0.6, motion=0.2), row(500, 0.7, shape=0.2)]
    told = share_of_training(pyramid, plain)
    assert told["colour"] == told["shape"] == 0.25, "as much as the twin has in the end, at last"
    assert told["motion"] == told["mean"] == 0.5
    assert share_of_training([row(250, 0.5)], plain)["colour"] is None


def test_what_a_pyramid_shows_worse_is_named() -> None:
    def judged(**shares: float) -> dict[str, Any]:
        known = dict.fromkeys(MEASURES, 0.5) | shares
        every = {"all": {name: {"share": share} for name, share in known.items()}}
        return {"starts": every, "inside": every}

    quality = {"pyramid": judged(shape=0.4, motion=0.9), "plain": judged()}
    assert worse_on(quality) == {"starts": ["shape"], "inside": ["shape"]}


@pytest.mark.parametrize(
    ("demo", "denoiser"), [("demo-pyramid", "transformer"), ("demo-animatediff-pyramid", "unet")]
)
def test_what_a_training_kept_becomes_a_model(tmp_path: Path, demo: str, denoiser: str) -> None:
    shipped, kept = resolve_model(demo), tmp_path / "kept"
    kept.mkdir()
    for part in (denoiser, "text_encoder", "tokenizer"):
        (kept / part).symlink_to(shipped / part)
    (kept / "noise.json").write_text(json.dumps({"stages": 3}))
    found = inspect_model(assembled(kept, shipped / "vae", tmp_path))
    assert found.parameters == inspect_model(shipped).parameters
    assert found.defaults.pyramid_steps == (1, 1, 1)


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    plot(
        {"pyramid": [row(0, 0.1), row(5, 0.4)], "plain": [row(0, 0.2)]}, tmp_path / "new" / "p.png"
    )
    assert (tmp_path / "new" / "p.png").read_bytes().startswith(b"\x89PNG")
