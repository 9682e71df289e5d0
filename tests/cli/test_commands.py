"""Commands, flags and stores, without Ray."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from jobs.families import FAMILIES
from jobs.files import seal
from jobs.presets import PRESETS
from jobs.store import Store
from orchestrator.events import EndRender
from orchestrator.prepare import plan_to_json, prepare
from tests.cli.conftest import Desk, refusal
from tests.ray.harness import LONGTAKE, Ran, environment
from tests.ray.harness import longtake as console

COMMANDS = (
    "render", "resume", "plan", "calibrate", "presets", "ls", "show", "verify", "report", "remove",
)  # fmt: skip


def command(desk: Desk, name: str, *args: object) -> Ran:
    return desk.run(name, *args, "--store", desk.store)


# -- commands and flags


def test_help_of_every_command_lists_its_flags(desk: Desk) -> None:
    needed = {
        "render": "[file] --prompt --negative --image --seconds --size --fps --seed --steps "
        "--pyramid auto|off|K --pyramid-first-stage windows|whole --model "
        "--preset --workers --store --out --save-latents --address --timeout --json",
        "resume": "job --store --take-over --out --workers --save-latents --timeout --json",
        "plan": "[file] --prompt --image --seconds --size --steps --pyramid --pyramid-first-stage "
        "--model --workers --json",
        "calibrate": "[job|model] --prompt --image --seconds --size --fps --steps --pyramid "
        "--pyramid-first-stage --model --lora --delta --rehash --plans "
        "--picture --device auto|cpu|cuda|cuda:N --json",
        "presets": "--json",
        "ls": "--store --json",
        "show": "job --store --json",
        "verify": "job --store --json",
        "report": "job_or_film --store --out --reference --border --json",
        "remove": "job --store --yes --json",
    }
    assert needed.keys() == set(COMMANDS)
    for name, words in needed.items():
        ran = desk.run(name, "--help")
        assert (ran.code, ran.err) == (0, "")
        for word in words.split():
            assert re.search(rf"(^|\s){re.escape(word)}(\s|$)", ran.out, re.I | re.M), (name, word)
    listed = desk.run("--help")
    assert listed.code == 0
    assert all(re.search(rf"^  {name} ", listed.out, re.M) for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_flag(desk: Desk, name: str) -> None:
    said = refusal(desk.run(name, "--sotre", "x"), 2)
    assert "No such option: --sotre" in said
    assert f"See: longtake {name} --help" in said


def test_an_unknown_command(desk: Desk) -> None:
    said = refusal(desk.run("rendre", "film.yaml"), 2)
    assert "No such command 'rendre'" in said
    assert "valid: render, resume, plan, calibrate, presets, animatediff, ls, show, verify" in said


def test_no_command_is_help(desk: Desk) -> None:
    ran = desk.run()
    assert (ran.code, ran.out) == (2, "")
    assert "Usage: longtake" in ran.err and "Traceback" not in ran.err


def test_too_much_and_too_little(desk: Desk) -> None:
    assert "unexpected extra argument" in refusal(desk.run("ls", "a"), 2)
    assert "Missing argument" in refusal(desk.run("show"), 2)
    assert "--store" in refusal(desk.run("ls", "--store"), 2)


# -- stores


@pytest.mark.parametrize("name", ["ls", "show", "verify", "resume"])
def test_no_store(desk: Desk, name: str) -> None:
    job = [] if name == "ls" else ["kite-1"]
    said = refusal(command(desk, name, *job), 6)
    assert f"there is no store at {desk.store}; check the path, or render a film into it" in said
    assert not desk.store.exists(), "asking must not create it"


def test_an_error_is_json_too_where_json_was_asked_for(desk: Desk) -> None:
    ran = command(desk, "show", "kite-1", "--json")
    assert ran.code == 6 and ran.json()["exit_code"] == 6
    assert ran.err == f"longtake: {ran.json()['error']}\n"
    assert "there is no store at" in ran.err


@pytest.mark.parametrize("name", ["ls", "show", "verify", "resume", "render"])
def test_a_store_of_a_newer_version(desk: Desk, flags: list[str], name: str) -> None:
    desk.store.mkdir()
    (desk.store / "store.json").write_bytes(seal({"format": 7, "what": "Longtake store"}))
    args = {"ls": [], "render": flags}.get(name, ["kite-1"])
    said = refusal(command(desk, name, *args), 6)
    assert "has store format 7, and this Longtake reads format 1; upgrade Longtake" in said
    assert os.listdir(desk.store) == ["store.json"]


def test_a_place_that_is_no_store(desk: Desk, flags: list[str]) -> None:
    (desk.folder / "file").write_text("x")
    for place, said in (
        (desk.folder / "file", "file is a file; give a folder for the store"),
        (desk.folder, "holds other files (file), so no store is made there; name a new or empty"),
        ("s3://bucket/x", "valid: a folder (renders/) or file:///path/of/folder"),
    ):
        assert said in refusal(desk.run("render", *flags, "--store", place), 6)
    assert os.listdir(desk.folder) == ["file"]


def test_a_store_by_its_uri(desk: Desk, stored: str) -> None:
    ran = desk.run("ls", "--json", "--store", desk.store.as_uri())
    assert [row["id"] for row in ran.json()] == [stored]


def test_a_damaged_store(desk: Desk, stored: str) -> None:
    (desk.store / "store.json").write_text("{")
    assert f"{desk.store}/store.json is damaged" in refusal(command(desk, "ls"), 6)


@pytest.mark.parametrize("name", ["show", "verify", "resume"])
@pytest.mark.parametrize("job", ["../kite-1", "/etc", "a/b", "..", ".", "", "kite-1/", "a\0b"])
def test_a_job_id_that_leaves_the_store(desk: Desk, stored: str, name: str, job: str) -> None:
    said = refusal(command(desk, name, job), 2)
    assert f"{job!r} cannot name a job; valid: up to 100 letters, digits" in said


@pytest.mark.parametrize("name", ["show", "verify", "resume"])
def test_an_unknown_job_lists_those_that_there_are(desk: Desk, stored: str, name: str) -> None:
    said = refusal(command(desk, name, "kite-2"), 2)
    assert f"no job 'kite-2' in {desk.store}; there are: kite-1" in said


def test_a_job_that_is_a_link_out_of_the_store(desk: Desk, stored: str) -> None:
    outside = desk.folder / "outside"
    outside.mkdir()
    (outside / "spec.json").touch()
    (desk.store / "jobs" / "link").symlink_to(outside)
    assert "leads out of the store" in refusal(command(desk, "show", "link"), 6)
    ran = command(desk, "ls", "--json")
    assert ran.code in (0, 6) and "Traceback" not in ran.err


# -- reading


def test_ls(desk: Desk, stored: str) -> None:
    rows = command(desk, "ls", "--json").json()
    assert [(row["id"], row["state"]) for row in rows] == [("kite-1", "planned")]
    assert rows[0]["seconds"] == 2.0 and rows[0]["size"] == [64, 64]
    table = command(desk, "ls")
    today = rows[0]["created"][:10]
    line = rf"kite-1 +planned +{today} \d\d:\d\d +2\.0 s +a red kite\n"
    assert re.fullmatch(line + "  tiny-wan, preset exact\n", table.out)
    assert table.err == ""


def test_ls_says_why_a_job_is_not_done_and_where_its_film_is(
    desk: Desk, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for outcome, message in (("timeout", "the time limit has passed"), ("done", "")):
        ended = EndRender(outcome, message)
        monkeypatch.setattr("orchestrator.render._Render._sessions", lambda self, e=ended: e)
        desk.render(*flags, "--prompt", "kite " * 30, "--out", f"{outcome}.mp4")
    rows = command(desk, "ls", "--json").json()
    done, late = sorted(rows, key=lambda row: row["state"])
    assert (late["state"], late["message"]) == ("interrupted", "the time limit has passed")
    assert (done["model"], done["preset"]) == (str(desk.model), "exact")
    assert done["out"] == str(desk.folder / "done.mp4")
    film = f"film: {desk.folder / 'done.mp4'}"
    assert f"  {film}, not there\n" in command(desk, "show", done["id"]).out
    assert f"  tiny-wan, preset exact; {film}, not there\n" in command(desk, "ls").out
    (desk.folder / "done.mp4").touch()
    lines = command(desk, "ls").out.splitlines()
    assert sorted(lines[1::2]) == [
        f"  tiny-wan, preset exact; {film}",
        "  tiny-wan, preset exact; the time limit has passed",
    ]
    assert all(len(line) == 100 and line.endswith("…") for line in lines[::2])


def test_the_films_path_is_plain(
    desk: Desk, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a person would look for it: ``..`` after a link is that of its target."""
    monkeypatch.setattr("orchestrator.render._Render._sessions", lambda self: EndRender("done", ""))
    (desk.folder / "far" / "below").mkdir(parents=True)
    (desk.folder / "link").symlink_to("far/below")
    desk.render(*flags, "--out", "link/../film.mp4")
    (row,) = command(desk, "ls", "--json").json()
    assert row["out"] == str(desk.folder / "far" / "film.mp4")


def test_ls_and_show_name_what_makes_a_job_faster(
    desk: Desk, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the words of ``plan``."""
    ended = EndRender("timeout", "late")
    monkeypatch.setattr("orchestrator.render._Render._sessions", lambda self: ended)
    file = desk.job("accelerations: {slicing: {slices: 2}}\n")
    for preset in ("exact", "fast"):
        desk.render(file, *flags, "--steps", "8", "--preset", preset)
    jobs = {row["preset"]: row["id"] for row in command(desk, "ls", "--json").json()}
    lines = command(desk, "ls").out.splitlines()
    assert sorted(lines[1::2]) == [
        "  tiny-wan, own accelerations; late",
        "  tiny-wan, preset fast, own accelerations; late",
    ]
    said = command(desk, "show", jobs["fast"]).out
    assert f"model {desk.model}, preset fast, own accelerations\n" in said


def test_ls_of_an_empty_store(desk: Desk) -> None:
    Store.open(desk.store)
    assert command(desk, "ls", "--json").json() == []
    assert command(desk, "ls").out == "no jobs\n"


@pytest.mark.parametrize("damage", [b"", b"{}", b"\x00" * 50])
def test_a_damaged_job_hides_no_other(desk: Desk, stored: str, damage: bytes) -> None:
    plan = Store.open(desk.store).job(stored)
    Store.open(desk.store).create_job("other-1", plan.spec(), plan.plan())
    (desk.store / "jobs" / stored / "plan.json").write_bytes(damage)
    rows = {row["id"]: row for row in command(desk, "ls", "--json").json()}
    assert rows["other-1"]["state"] == "planned"
    assert rows["kite-1"]["state"] == "damaged"
    assert "plan.json is damaged" in rows["kite-1"]["problem"]
    table = command(desk, "ls")
    assert table.code == 0
    assert re.search(r"kite-1 +damaged .*plan.json is damaged", table.out)
    assert table.out.index("kite-1") < table.out.index("other-1"), "in the order of their creation"
    for name in ("show", "verify", "resume"):
        assert "plan.json is damaged" in refusal(command(desk, name, stored), 6)


def test_show(desk: Desk, stored: str) -> None:
    report = command(desk, "show", stored, "--json").json()
    assert (report["id"], report["state"]) == ("kite-1", "planned")
    assert report["pieces_done"] == 0 and report["playable"] == []
    said = command(desk, "show", stored)
    assert f"next: longtake resume kite-1 --store {desk.store}" in said.out
    assert said.err == ""


def test_only_a_finished_job_is_verified(desk: Desk, stored: str) -> None:
    said = refusal(command(desk, "verify", stored), 2)
    assert "job kite-1 is planned, not done; finish it first: longtake resume kite-1" in said
    assert f"--store {desk.store}" in said


def test_reading_writes_nothing(desk: Desk, stored: str) -> None:
    def tree() -> list[tuple[str, float]]:
        return sorted((str(p), p.stat().st_mtime) for p in desk.store.rglob("*"))

    before = tree()
    for name, args in (("ls", []), ("show", [stored]), ("verify", [stored])):
        command(desk, name, *args)
    assert tree() == before


def test_a_model_that_changed_is_not_resumed(desk: Desk, stored: str, tmp_path: Path) -> None:
    from jobs.spec_file import spec_from_flags

    copy = Path(shutil.copytree(desk.model, tmp_path / "copy"))
    job = {"prompt": "a", "seconds": 1.0, "size": "64x64", "model": str(copy)}
    prepared = prepare(spec_from_flags(job))
    Store.open(desk.store).create_job(
        "changed", prepared.spec.canonical(), plan_to_json(prepared.plan)
    )
    config = copy / "transformer/config.json"
    config.write_text(config.read_text() + "\n")
    said = refusal(command(desk, "resume", "changed"), 2)
    assert "have changed since this job was planned" in said
    assert "Restore them to resume, or render again as a new job" in said
    shutil.rmtree(copy)
    said = refusal(command(desk, "resume", "changed"), 2)
    assert f"is no longer at {copy}: put it back there to resume" in said


# -- the console script


def test_the_console_script(desk: Desk, flags: list[str], stored: str) -> None:
    bad = console("render", *flags, "--steps", "0", "--store", desk.folder / "new")
    assert refusal(bad, 2) == "--steps: must be at least 1, got 0"
    assert not (desk.folder / "new").exists()
    assert refusal(console("ls", "--stroe", "x"), 2).startswith("No such option: --stroe")
    assert console("ls", "--store", desk.store, "--json").json()[0]["id"] == stored
    assert console("plan", *flags, "--json").json()["pixel_frames"] == 8
    assert console("show", "kite-9", "--store", desk.store).code == 2


def test_the_store_may_stand_in_the_environment(desk: Desk, stored: str) -> None:
    assert console("ls", "--json", LONGTAKE_STORE=str(desk.store)).json()[0]["id"] == stored


def test_a_reader_that_goes_away_is_no_bug(desk: Desk, stored: str) -> None:
    with subprocess.Popen(
        [LONGTAKE, "show", stored, "--store", desk.store, "--json"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()


def without_privileges(*args: object) -> Ran:
    """The command, held to the permissions of files even when root runs the tests."""
    drop = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"] if os.getuid() == 0 else []
    if drop and shutil.which(drop[0]) is None:
        pytest.skip("root may write anywhere, and setpriv is not installed")
    done = subprocess.run(
        [*drop, str(LONGTAKE), *map(str, args)],
        env=environment(),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def test_no_permission(desk: Desk, flags: list[str]) -> None:
    closed = desk.folder / "closed"
    closed.mkdir(mode=0o555)
    args = ("--store", desk.folder / "mine", "--out", closed / "film.mp4")
    said = refusal(without_privileges("render", *flags, *args), 2)
    assert f"no permission to write in {closed}; choose another --out" in said
    assert not (desk.folder / "mine").exists()
    said = refusal(without_privileges("render", *flags, "--store", closed / "mine"), 6)
    assert f"cannot write {closed}" in said and "give this user write permission" in said


def test_a_prompt_in_any_script(desk: Desk) -> None:
    ran = desk.run(
        "plan", "--prompt", "красный змей 🪁", "--seconds", "1", "--model", desk.model,
        "--size", "64x64", "--json",
    )  # fmt: skip
    assert json.loads(ran.out)["shots"][0]["prompt"] == "красный змей 🪁"


def test_presets_are_listed_with_what_was_measured(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGTAKE_PLANS", str(desk.folder / "nothing tried"))
    ran = desk.run("presets")
    assert ran.code == 0
    said, table, about = ran.out.split("\n\n")
    assert [line.split()[0] for line in said.splitlines()] == list(PRESETS)
    assert max(map(len, ran.out.splitlines())) <= 120, "a line each"
    models = [row.split("  ")[0] for row in table.splitlines()[3:] if row[0] != " "]
    assert models == [*PRESETS["fast"].measured, "ltx-condition", "wan-ti2v"]
    demo = desk.run("plan", "--prompt", "kite", "--seconds", "1", "--json").json()
    assert f" demo renders {demo['shots'][0]['steps']} by default" in about
    assert "longtake presets film.yaml" in about
    assert (
        "\nwan                         1.64x 54 (53)   2.31x 40 (37)   the demo model, 30" in table
    )
    assert "\n  over no pyramid           3.33x           4.69x\n" in table
    rows = desk.run("presets", "--json").json()
    assert rows[0] == {
        "name": "exact", "description": PRESETS["exact"].description, "accelerations": {},
        "by_family": {}, "with_noise": {}, "measured": {}, "not_measured": sorted(FAMILIES),
        "tried_here": [],
    }  # fmt: skip
    assert rows[1]["not_measured"] == ["ltx-condition", "wan-ti2v"]
    assert "\nltx-condition               not measured" in table
    assert rows[2]["with_noise"]["cogvideox"]["adaptive"]["threshold"] == 0.05
