"""Result files say of which weights and which code they are, and nothing of the machine's paths."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import common
from jobs.model_folder import inspect_model, resolve_model


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", *who, "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_code_is_told_by_its_commit(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "benchmarks" / "results").mkdir(parents=True)
    assert common.code_version(checkout) is None, "outside a checkout"
    git(checkout, "init")
    assert common.code_version(checkout) is None, "without a commit"
    (checkout / "a.py").write_text("1")
    git(checkout, "add", ".")
    git(checkout, "commit", "-m", "a")
    commit = git(checkout, "rev-parse", "HEAD")
    assert common.code_version(checkout) == commit
    (checkout / "benchmarks" / "results" / "a.json").write_text("{}")
    assert common.code_version(checkout) == commit, "a result is no code"
    assert common.code_version(checkout / "benchmarks") is None, "within another's checkout"
    (checkout / "b.py").write_text("2")
    assert common.code_version(checkout) == f"{commit}+changes", "a new file"


def written(folder: Path) -> str:
    (path,) = folder.glob("*.json")
    return path.read_text()


def test_a_result_says_which_weights_were_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    mine = tmp_path / "mine"
    shutil.copytree(resolve_model("demo"), mine)
    config = mine / "vae" / "config.json"
    config.write_text(config.read_text() + "\n")
    common.write_result("a", {"model": str(mine), "x": 1})
    text = written(tmp_path / "results")
    said = json.loads(text)
    (model,) = said["machine"]["models"]
    assert model == {"name": "mine", "identity": inspect_model(mine).identity}
    assert model["identity"] != common.model_identity("demo")
    assert said["model"] == "mine" and str(tmp_path) not in text
    assert said["machine"].get("code") == common.CODE


def test_a_result_of_no_weights_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    with pytest.raises(ValueError, match="of which weights"):
        common.write_result("a", {"x": 1})
    common.write_result("a", {"weights": "none", "x": 1})
    said = json.loads(written(tmp_path))
    assert said["weights"] == "none" and "models" not in said["machine"]


def test_lists_of_numbers_take_a_line() -> None:
    figures = {"rows": [0.12345, 1, [2.0, -3e-9]], "said": ["a [1,  2] b"], "deep": {"x": [{}]}}
    short = common.rounded(figures, 3)
    assert short["rows"] == [0.123, 1, [2.0, -0.0]]
    text = common.pretty({"rows": [0.5, 1, -3e-9], "said": ["a [1,  2] b"]})
    assert json.loads(text) == {"rows": [0.5, 1, -3e-9], "said": ["a [1,  2] b"]}
    assert '"rows": [0.5,1,-3e-09]' in text
