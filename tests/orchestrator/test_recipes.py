"""A recipe holds what a result's bits depend on, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs.accelerations import Accelerations, Adaptive
from jobs.images import ImageFile
from jobs.units import RepeatedNoise, Unit
from orchestrator.plan import Plan
from orchestrator.recipes import Recipes, film_key
from tests.orchestrator.plans import frames_for, make_plan


def two_shots() -> Plan:
    return make_plan(6, frames_for(2), steps=3)


@pytest.mark.parametrize(
    "changes",
    [
        {"title": "another"},
        {"model": "/elsewhere/wan"},
        {"tile_bytes": 7},
        {"model_bytes": 7},
        {"checkpoint_every": 1},
    ],
)
def test_what_the_bits_do_not_depend_on(changes: dict[str, object]) -> None:
    before, after = two_shots(), replace(two_shots(), **changes)
    assert film_key(before) == film_key(after)
    assert [Recipes(before, "a-1").key(unit) for unit in before.units()] == [
        Recipes(after, "a-1").key(unit) for unit in before.units()
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"model_identity": "1" * 64},
        {"dtype": "bfloat16"},
        {"threads": 2},
        {"numerics": "pinned"},
    ],
)
def test_every_result_depends_on(changes: dict[str, object]) -> None:
    before, after = two_shots(), replace(two_shots(), **changes)
    assert film_key(before) != film_key(after)
    theirs = {Recipes(before, "a-1").key(unit) for unit in before.units()}
    assert not theirs & {Recipes(after, "a-1").key(unit) for unit in after.units()}


@pytest.mark.parametrize(
    "changes", [{"codec": "ffv1"}, {"quality": 3}, {"fps": 8}, {"decoder_dtype": "bfloat16"}]
)
def test_only_pieces_depend_on_how_they_are_written(changes: dict[str, object]) -> None:
    before, after = two_shots(), replace(two_shots(), **changes)
    assert film_key(before) != film_key(after)
    for unit in before.units():
        same = Recipes(before, "a-1").key(unit) == Recipes(after, "a-1").key(unit)
        assert same == (unit.kind != "decode")


def test_only_what_is_encoded_does_not_depend_on_its_noise() -> None:
    plan = two_shots()

    def with_noise(period: int, share: float) -> Plan:
        noise = RepeatedNoise(period=period, share=share)
        shots = [replace(s, render=replace(s.render, repeated_noise=noise)) for s in plan.shots]
        return replace(plan, shots=tuple(shots))

    plans = [plan, with_noise(8, 0.5), with_noise(8, 1.0), with_noise(9, 1.0)]
    for unit in plan.units():
        keys = {Recipes(each, "a-1").key(unit) for each in plans}
        assert len(keys) == (1 if unit.kind == "encode" else len(plans))


def test_a_model_that_counts_seconds_denoises_another_film_at_another_rate() -> None:
    plan = two_shots()
    seconds = replace(plan, geometry=replace(plan.geometry, time_in_seconds=True))
    faster = tuple(replace(shot, render=replace(shot.render, fps=99)) for shot in plan.shots)
    for before, same in ((plan, True), (seconds, False)):
        after = replace(before, shots=faster)
        for unit in before.units():
            if unit.kind == "step":
                keys = {Recipes(each, "a-1").key(unit) for each in (before, after)}
                assert (len(keys) == 1) == same


def test_a_new_encoder_writes_every_piece_again(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = two_shots()
    piece, step = Unit("decode", 0), Unit("step", 0)
    before = [Recipes(plan, "a-1").key(piece), Recipes(plan, "a-1").key(step), film_key(plan)]
    monkeypatch.setattr("orchestrator.recipes.ENCODER_VERSION", -1)
    after = [Recipes(plan, "a-1").key(piece), Recipes(plan, "a-1").key(step), film_key(plan)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True, False]


def with_image(**changes: object) -> Plan:
    """Of two shots the first starts from an image."""
    plan = two_shots()
    image = ImageFile("/a.png", "1" * 64, 32, 16)
    render = replace(plan.shots[0].render, **{"image": image} | changes)
    return replace(plan, shots=(replace(plan.shots[0], render=render), plan.shots[1]))


@pytest.mark.parametrize(
    "changes",
    [
        {"image": None},
        {"image": ImageFile("/a.png", "2" * 64, 32, 16)},
        {"seed": 99},
        {"latent_height": 2},
        {"fps": 99},
    ],
)
def test_an_image_is_part_of_its_shot_and_of_no_other(changes: dict[str, object]) -> None:
    """With all that it is encoded with: the film's size, the shot's noise, the frame rate."""
    before, after = with_image(), with_image(**changes)
    assert film_key(before) != film_key(after)
    for unit in before.units():
        same = Recipes(before, "a-1").key(unit) == Recipes(after, "a-1").key(unit)
        assert same == (unit.shot == 1), unit


def test_where_an_image_lies_is_no_matter() -> None:
    moved = with_image(image=ImageFile("/elsewhere/a.png", "1" * 64, 32, 16))
    assert film_key(with_image()) == film_key(moved)
    assert with_image().images == (ImageFile("/a.png", "1" * 64, 32, 16),)


def test_the_order_of_shots_is_part_of_a_film() -> None:
    plan = two_shots()
    assert film_key(plan) != film_key(replace(plan, shots=plan.shots[::-1]))


def test_jobs_share_all_that_is_finished_and_nothing_that_one_of_them_deletes() -> None:
    plan = make_plan(6, frames_for(2), steps=3)
    one, other = Recipes(plan, "a-1"), Recipes(plan, "b-2")
    for unit in plan.units():
        unfinished = unit.kind == "step" and not plan.is_last_step(unit)
        assert (one.key(unit) != other.key(unit)) == unfinished


def test_equal_shots_share_all_that_is_finished_and_nothing_that_one_of_them_deletes() -> None:
    plan = two_shots()
    plan = replace(plan, shots=(plan.shots[0], replace(plan.shots[0], first_pixel_frame=99)))
    recipes = Recipes(plan, "a-1")
    for unit in plan.units():
        twin = replace(unit, shot=1)
        unfinished = unit.kind == "step" and not plan.is_last_step(unit)
        assert unit.shot or (recipes.key(unit) != recipes.key(twin)) == unfinished


def test_a_job_that_pins_its_numerics_shares_nothing() -> None:
    """Another such job may have pinned another class."""
    plan = replace(two_shots(), numerics="pinned")
    one, other = ({Recipes(plan, job).key(unit) for unit in plan.units()} for job in "ab")
    assert not one & other


def test_steps_depend_on_accelerations_and_prompts_do_not() -> None:
    before = two_shots()
    after = replace(before, accelerations=Accelerations(adaptive=Adaptive()))
    for unit in before.units():
        same = Recipes(before, "a-1").key(unit) == Recipes(after, "a-1").key(unit)
        assert same == (unit.kind == "encode")
    older = (replace(each, accelerations_version=-1) for each in (before, after))
    same = [film_key(a) == film_key(b) for a, b in zip((before, after), older, strict=True)]
    assert same == [True, False]
