"""Job files: every mistake is named with its line and column."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from jobs.errors import BadJob
from jobs.families.family import ModelDefaults
from jobs.spec import resolve
from jobs.spec_file import load_spec
from tests.jobs.test_spec import GEOMETRY, job, shots

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.fixture
def load(tmp_path):
    def load(text, **overrides):
        path = tmp_path / "film.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_spec(path, overrides)

    return load


@pytest.fixture
def refusal(load, tmp_path):
    def refusal(text, **overrides):
        with pytest.raises(BadJob) as caught:
            load(text, **overrides)
        return str(caught.value).replace(f"{tmp_path}/", "")

    return refusal


def test_a_file_gives_the_same_job_as_code(load):
    assert load("prompt: a kite\nseconds: 5\n") == job()
    text = "size: 64x32\nshots:\n- {prompt: a kite, seconds: 1}\n- prompt: a kite\n  seconds: 1\n"
    assert load(text) == shots({}, {}, size=[64, 32])


def test_json_is_yaml(load):
    assert load('{"prompt": "a kite", "seconds": 5.0}') == job()


def test_a_byte_order_mark_is_no_matter(load):
    assert load(b"\xef\xbb\xbfprompt: a kite\nseconds: 5") == job()


def test_a_mistake_has_its_line_and_column(refusal):
    assert refusal("prompt: a\nseconds: 1\nfps: 0").startswith("film.yaml:3:1: fps: must be")
    text = "shots:\n- prompt: a\n  seconds: 1\n- prompt: a\n  seconds: -1\n"
    assert refusal(text).startswith("film.yaml:5:3: shots[2].seconds: must be more than 0")
    assert refusal("shots: [{prompt: a, seconds: 1}, {seconds: 1}]").startswith(
        "film.yaml:1:34: shots[2].prompt: missing"
    )
    assert refusal("prompt: ''\nseconds: 1").startswith("film.yaml:1:1: prompt: must not be empty")


def test_mistakes_stand_in_the_files_order(refusal):
    lines = refusal("steps: a\nprompt: a\nfps: 0\nseconds: b\ntypo: 1").splitlines()
    assert [line.split(":")[1] for line in lines[1:]] == ["1", "3", "4", "5"]


def test_a_mistake_found_against_the_model_keeps_its_line(load, tmp_path):
    spec = load("prompt: a\nseconds: 1\nsize: [830, 480]")
    with pytest.raises(BadJob, match=r"film.yaml:3:1: size: 830x480 does not fit"):
        resolve(spec, GEOMETRY, ModelDefaults())


def test_flags_win_over_the_file_and_are_named(load, refusal):
    text = "prompt: a gull\nseconds: 5\noutput: {quality: 3}"
    assert load(text, prompt="a kite", codec="ffv1") == job(output={"codec": "ffv1", "quality": 3})
    assert refusal(text, fps=0).startswith("--fps: must be")
    said = refusal("shots: [{prompt: a, seconds: 1}]", prompt="b")
    assert said.startswith("--prompt: belongs to a shot, and this job file lists its shots")


def test_what_is_only_misspelt_is_not_called_missing(refusal):
    said = refusal("shot: [{prompt: a, seconds: 1}]")
    assert "did you mean 'shots'?" in said and "missing" not in said
    said = refusal("promt: a\nseconds: 1")
    assert "did you mean 'prompt'?" in said and "missing" not in said
    said = refusal("shots: [{promt: a, seconds: 1}, {shot: 2, prompt: b}, {seconds: 1}]")
    assert "shots[1]: " not in said and "shots[1].prompt: missing" not in said
    assert "shots[2].seconds: missing" in said and "shots[3].prompt: missing" in said
    said = refusal("promt: x\nshots: [{seconds: 1}]")
    assert "shots[1].prompt: missing" in said


def test_a_job_file_that_is_not_there(tmp_path):
    for name in ("a", "b", "c", "d", "e", "film"):
        (tmp_path / f"{name}.yaml").write_text("")
    with pytest.raises(BadJob, match=r"job files there: film.yaml, a.yaml, .*d.yaml, \.\.\.$"):
        load_spec(tmp_path / "flim.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "film.yaml is empty"),
        ("# nothing\n", "film.yaml is empty"),
        ("- a\n- b\n", "film.yaml must be a mapping"),
        ("just text", "film.yaml must be a mapping"),
        ("prompt: a: b", "film.yaml:1:10: this is not valid YAML"),
        ("prompt: [a", "this is not valid YAML"),
        ("prompt: a\n\tfps: 3", "film.yaml:2:1: this is not valid YAML"),
        ("a: 1\n---\nb: 2", "this is not valid YAML"),
        ("prompt: a\nfps: 1\nfps: 2", "film.yaml:3:1: 'fps' stands here twice"),
        ("output: {quality: 1, quality: 2}", "film.yaml:1:22: 'quality' stands here twice"),
        ("? [a]\n: 1", "names must be plain text"),
        ("<<: {fps: 3}", "names must be plain text"),
        ("prompt: !!python/object/apply:os.system [ls]", "is not valid in a job; remove it"),
        ("prompt: !!python/name:os.system ''", "this is not valid YAML"),
        ("prompt: a\nseconds: 010", "film.yaml:2:10: 010 starts with 0"),
        ("prompt: 2024-01-01\nseconds: 1", "needs text, got the date 2024-01-01; put it in quotes"),
        ("prompt: 2024-13-45\nseconds: 1", "cannot be read"),
        ("prompt: yes\nseconds: 1", "needs text, got the yes/no value true; put it in quotes"),
        ("prompt: a\nseconds: 1\nsteps: 1e2", "got the text '1e2'; write 100 without quotes"),
        ("prompt: a\nseconds: .nan", "seconds: needs a finite number"),
        ("prompt: a\nseconds: 1\nfps:\n  a: 1", "fps: needs a whole number, got a mapping"),
        ("prompt: a\nseconds: 1\ntitle:", "title: needs text, got nothing"),
        (b"\xff\xfe\x00", "not UTF-8 text (byte 1)"),
        (b"prompt: \x00", "this is not valid YAML"),
        (b"\x89PNG\r\n", "not UTF-8"),
        ("x" * 1_000_001, "larger than 1000 kB"),
        ("[" * 5000, "nested too deep"),
        ("a: " + "[" * 25 + "]" * 25, "too deeply nested"),
        ("a: &a\n  b: *a", "too deeply nested"),
    ],
)
def test_files_that_are_no_job(refusal, text, message):
    assert message in refusal(text)


def test_an_alias_bomb_is_refused_at_once(refusal):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for i in range(1, 12):
        lines.append(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]")
    began = time.monotonic()
    assert "too many" in refusal("\n".join(lines))
    assert time.monotonic() - began < 5


def test_an_alias_is_fine(load):
    text = "shots:\n- &a {prompt: a kite, seconds: 1}\n- *a\n"
    assert load(text) == shots({}, {})


def test_paths_that_are_no_file(tmp_path):
    with pytest.raises(BadJob, match="is a folder"):
        load_spec(tmp_path)
    (tmp_path / "other.yaml").touch()
    with pytest.raises(BadJob, match=r"does not exist; job files there: other.yaml"):
        load_spec(tmp_path / "film.yaml")
    with pytest.raises(BadJob, match="not an ordinary file"):
        load_spec("/dev/zero")
    with pytest.raises(BadJob, match=r"cannot be read|does not exist"):
        load_spec("a\0b")


@pytest.mark.parametrize("path", EXAMPLES, ids=[each.name for each in EXAMPLES])
def test_the_examples_are_jobs(path):
    assert EXAMPLES and load_spec(path).shots
