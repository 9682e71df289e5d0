"""Disks that are full, read-only, or give back what was not written."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.ray.harness import (
    Ran,
    job_ids,
    longtake,
)
from tests.ray.trouble import (
    check_film,
    check_refused,
    computed,
    data_file,
    flip_bit,
    render,
    result_folder,
    resume,
    stored,
)


@pytest.mark.long
def test_a_disk_that_is_full_or_read_only_and_then_damages_what_it_has(
    film_yaml: Path, good: dict[str, Any], tmp_path: Path
) -> None:
    """At a result, at the journal, at the lease, in the middle of denoising: said, resumable, and
    the film is the same. Only what was damaged is computed again."""
    store = tmp_path / "store"
    full = render(film_yaml, tmp_path, LONGTAKE_FAULT="data.mid_write:enospc:4")
    check_refused(full, 6)
    assert "No space left on device" in full.err and "free some space" in full.err
    job = job_ids(store)[0]
    assert f"To go on: longtake resume {job} --store {store}" in full.err

    full = resume(store, "--json", LONGTAKE_FAULT="journal.mid_write:enospc:3")
    check_refused(full, 6)
    assert "No space left on device" in full.err
    assert f"To go on: longtake resume {job} --store {store}" in full.err
    assert (full.json()["id"], full.json()["outcome"]) == (job, "store_failed")

    closed = resume(store, LONGTAKE_FAULT="lease.before_write:erofs")
    check_refused(closed, 6)
    assert "Read-only file system" in closed.err and "writable" in closed.err

    kept, damaged = "shot 1 window 1 step 2", "shot 1 window 2 step 2"
    assert {kept, damaged} < stored(store), "it was not in the middle of denoising"
    before = computed(store)
    spoiled = data_file(store, damaged)
    flip_bit(spoiled)
    ran = resume(store)
    assert ran.code == 0, ran.err
    assert str(spoiled) in ran.err
    check_film(store, good)
    again = computed(store) - before
    assert again[damaged] == 1 and again[kept] == again["shot 1 prompts"] == 0


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount")
@pytest.mark.long
def test_a_disk_that_is_really_full(film_yaml: Path, good: dict[str, Any], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "none", disk])
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        ran = render(film_yaml, disk)
        check_refused(ran, 6)
        assert "No space left on device" in ran.err
        assert f"longtake resume {job_ids(disk / 'store')[0]}" in ran.err
        subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
        ran = resume(disk / "store")
        assert ran.code == 0, ran.err
        check_film(disk / "store", good)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.long
def test_damage_between_a_render_and_its_resume(copied: Path, good: dict[str, Any]) -> None:
    """Each damaged file is named; what it held is computed again, and nothing else is lost."""
    store, out = copied / "store", copied / "film.mp4"
    piece, record = data_file(store, "shot 1 piece 1"), result_folder(store, "shot 1 piece 2")
    latents = data_file(store, "shot 1 window 3 step 4")
    journal = sorted((store / "jobs" / job_ids(store)[0] / "journal").glob("*.json"))[2]
    flip_bit(latents)
    piece.write_bytes(piece.read_bytes()[:-10])
    flip_bit(record / "record.json")
    flip_bit(journal)

    job = job_ids(store)[0]
    assert longtake("ls", "--store", store, "--json").json()[0]["state"] == "damaged"
    before = longtake("show", job, "--store", store)
    check_refused(before, 6)
    assert str(journal) in before.err

    ran = resume(store, "--out", out)
    assert ran.code == 0, ran.err
    assert f"set aside: {journal}.damaged" in ran.err
    assert str(record / "record.json") in ran.err
    report = check_film(store, good)
    assert list((store / "damaged").iterdir()), "damaged results are kept aside"
    # The window's five steps, and what they rest on: four of its neighbour's and three of the
    # next one's, for the checkpoints of a finished stage are deleted; and two pieces.
    again = report["units_computed"] - good["units_computed"]
    assert again == 5 + 4 + 3 + 2
    assert longtake("verify", job, "--store", store).code == 0


# -- verify


@pytest.fixture(scope="module")
def finished(good: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A finished job to spoil and mend."""
    return good | {"film": Path(good["out"]), "root": Path(good["store"])}


def verify(finished: dict[str, Any]) -> Ran:
    return longtake("verify", finished["id"], "--store", finished["root"], "--json")


def test_verify_finds_what_changed(finished: dict[str, Any]) -> None:
    film, store = finished["film"], finished["root"]
    ran = verify(finished)
    assert (ran.code, ran.json()["problems"]) == (0, [])
    assert ran.json()["frames_sha256"] == finished["frames_sha256"]
    text = longtake("verify", finished["id"], "--store", store)
    assert text.code == 0 and "all as recorded" in text.out

    kept = film.read_bytes()
    shutil.copyfile(finished["playable"][1], film)  # a film, but not this one
    ran = verify(finished)
    assert ran.code == 8
    assert any("frames" in problem and str(film) in problem for problem in ran.json()["problems"])
    film.write_bytes(kept[: len(kept) // 2])
    assert verify(finished).code == 8
    film.unlink()
    ran = verify(finished)
    assert ran.code == 8
    assert f"the film {film} is missing" in ran.json()["problems"][0]
    film.write_bytes(kept)

    for name in ("shot 1 piece 2", "shot 1 window 1 step 4", "shot 1 prompts"):
        spoiled = data_file(store, name)
        content = spoiled.read_bytes()
        flip_bit(spoiled)
        ran = verify(finished)
        assert ran.code == 8
        assert any(problem.startswith(f"{name}: ") for problem in ran.json()["problems"])
        text = longtake("verify", finished["id"], "--store", store)
        assert text.code == 8 and "PROBLEM" in text.out
        spoiled.write_bytes(content)
    assert verify(finished).code == 0


@pytest.mark.long
def test_resume_mends_what_verify_finds(finished: dict[str, Any]) -> None:
    """Also latents that nobody would read again, for the film has been made of them; and a film
    that somebody has changed is kept beside the one that is made again."""
    store, film = finished["root"], finished["film"]
    damaged = ("shot 1 window 2 step 4", "shot 1 piece 2")
    for name in damaged:
        flip_bit(data_file(store, name))
    flip_bit(sorted((store / "jobs" / finished["id"] / "journal").glob("*.json"))[3])
    with film.open("ab") as file:
        file.write(b"a sound track")
    said = longtake("verify", finished["id"], "--store", store)
    assert said.code == 8
    assert f"longtake resume {finished['id']} --store {store}" in said.out
    ran = resume(store, "--out", film)
    assert ran.code == 0, ran.err
    for name in damaged:
        assert f"it is set aside, and {name} is computed again" in ran.err
    kept = film.with_stem("film.1")
    assert f"it is kept as {kept}" in ran.err and kept.read_bytes().endswith(b"a sound track")
    assert verify(finished).code == 0
    kept.unlink()
