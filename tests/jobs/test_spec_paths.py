"""A job file that is read from elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.spec_file import load_spec
from jobs.spec_paths import from_folder

FILM = """
model: {model}
loras: [{{path: style.safetensors}}, {{path: /far/off.safetensors}}]
accelerations: {{rehash: {{threshold: 0.9, profiles: found}}, fast_attention: {{plans: ~/plans}}}}
shots: [{{prompt: a kite, seconds: 2, image: pictures/kite.png}}]
"""


def test_paths_count_from_the_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "films" / "wan").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    file = Path("films/film.yaml")
    file.write_text(FILM.format(model="wan"))
    spec = load_spec(file)
    assert spec.model == "films/wan"
    assert [each.path for each in spec.loras] == ["films/style.safetensors", "/far/off.safetensors"]
    asked = spec.accelerations
    assert (asked.rehash.profiles, asked.fast_attention.plans) == ("films/found", "~/plans")
    assert spec.shots[0].image == "films/pictures/kite.png"
    given = load_spec(file, {"model": "wan"})
    assert given.model == "wan", "an option counts from where it is typed"


@pytest.mark.parametrize("name", ["demo", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "/models/wan"])
def test_a_model_that_is_no_folder_beside_the_file_keeps_its_name(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "demo").mkdir()
    assert from_folder({"model": name}, str(tmp_path))["model"] == name


def test_a_missing_folder_is_not_taken_for_a_repository(tmp_path: Path) -> None:
    told = from_folder({"model": "./mine/wan"}, str(tmp_path))["model"]
    assert told == f"{tmp_path}/./mine/wan"


@pytest.mark.parametrize(
    "odd",
    [
        {"shots": {"image": "a.png"}},
        {"shots": [7, {"image": 3}]},
        {"loras": "a"},
        {"accelerations": {"rehash": [1]}},
        {"model": None},
        {"image": ""},
    ],
)
def test_what_is_no_path_is_left_for_others_to_refuse(odd: dict) -> None:
    assert from_folder(odd, "films") == odd
