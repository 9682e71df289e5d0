"""Fixtures for tests of the command line that start no Ray: the command runs in this process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs.store import Store
from orchestrator import cli
from orchestrator.prepare import plan_to_json, prepare
from tests.ray.harness import Ran
from tests.workers.tiny import write_tiny_wan
from tests.workers.tiny_animatediff import write_tiny_animatediff


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_wan(tmp_path_factory.mktemp("model") / "tiny-wan")


@pytest.fixture(autouse=True)
def no_render(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that should be refused and is not must not start Ray."""

    def reached(*args: Any) -> None:
        raise AssertionError("a render was started")

    monkeypatch.setattr("orchestrator.render._Render._sessions", reached)


@pytest.fixture
def longtake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ran]:
    """Runs the command in this process, as the console script does."""

    def run(*args: object) -> Ran:
        monkeypatch.setattr("sys.argv", ["longtake", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return Ran(int(ended.value.code or 0), out, err)

    return run


@dataclass(frozen=True)
class Desk:
    """A folder with a job file and a store's name; the store does not exist yet."""

    folder: Path
    model: Path
    run: Callable[..., Ran]

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def job(self, text: str | bytes = "", name: str = "film.yaml") -> Path:
        path = self.folder / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def render(self, *args: object) -> Ran:
        return self.run("render", *args, "--store", self.store)

    def refuse(self, *args: object, code: int = 2) -> str:
        """What the person is told of a job that cannot be; checks what holds for all of them."""
        ran = self.render(*args)
        said = refusal(ran, code)
        assert not self.store.exists() or not os.listdir(self.store / "jobs")
        return said


def refusal(ran: Ran, code: int) -> str:
    """The one message of a command that was refused."""
    assert ran.code == code, ran.err
    assert ran.out == ""
    assert "Traceback" not in ran.err
    assert ran.err.startswith("longtake: ") and ran.err.count("longtake: ") == 1, ran.err
    assert "internal error" not in ran.err
    return ran.err.removeprefix("longtake: ").rstrip("\n")


@pytest.fixture
def desk(
    tmp_path: Path, model: Path, longtake: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> Desk:
    monkeypatch.chdir(tmp_path)
    return Desk(tmp_path, model, longtake)


@pytest.fixture
def flags(desk: Desk) -> list[str]:
    """A good job, as flags."""
    text = "--prompt kite --seconds 1 --size 64x64 --steps 4 --fps 8 --seed 3 --preset exact"
    return [*text.split(), "--model", str(desk.model), "--negative", "blurred"]


@pytest.fixture
def stored(desk: Desk) -> str:
    """The id of a job that was planned and never rendered."""
    from jobs.spec_file import spec_from_flags

    job = {"prompt": "a red kite", "seconds": 2.0, "size": "64x64", "model": str(desk.model)}
    prepared = prepare(spec_from_flags(job))
    store = Store.open(desk.store)
    store.create_job("kite-1", prepared.spec.canonical(), plan_to_json(prepared.plan))
    return "kite-1"


#: Of a film in ``rehash_job``.
STEPS = 5


@pytest.fixture
def rehash_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """Of a model that takes rehash, in ``film.yaml`` of the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LONGTAKE_PLANS", str(tmp_path / "plans"))
    asked = {
        "version": 1, "model": str(write_tiny_animatediff(tmp_path / "model")), "prompt": "kite",
        "seconds": 1, "size": [32, 32], "steps": STEPS,
        "accelerations": {"rehash": {"threshold": 0.5}},
    }  # fmt: skip
    Path("film.yaml").write_text(json.dumps(asked))
    return asked
