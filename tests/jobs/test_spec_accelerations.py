"""What a job may say of accelerations."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs.accelerations import USUAL_THRESHOLDS, Accelerations, Adaptive, Rehash
from jobs.presets import PRESETS
from jobs.spec import resolve
from tests.jobs.test_spec import DEFAULTS, GEOMETRY, job, refusal, solved


def test_an_acceleration_that_could_do_nothing_is_refused():
    asked = {"accelerations": {"adaptive": {"first": 3, "last": 1}}}
    said = refusal(solved, job(steps=4, **asked))
    assert "accelerations.adaptive: has nothing to skip: steps are 4, and 4 of a stage" in said
    assert solved(job(steps=5, **asked)).accelerations.adaptive is not None
    said = refusal(solved, job(steps=12, pyramid=3, **asked))
    assert "the stages' steps are 4-4-4, and 4 of a stage always run (first + last)" in said


@pytest.mark.parametrize(
    ("rehash", "fields", "message"),
    [
        ({}, {}, "accelerations.rehash: needs one of key_steps, every and threshold"),
        ({"every": 2, "key_steps": [[0]]}, {}, "needs only one of key_steps, every and threshold"),
        ({"every": 2, "threshold": 0.9}, {}, "needs only one of key_steps, every and threshold"),
        ({"key_steps": [[0, 2]], "threshold": 0.9}, {}, "key_steps are found by the threshold"),
        ({"every": 2, "profiles": "p"}, {}, "profiles is for a threshold; give one"),
        ({"every": 1}, {}, "accelerations.rehash.every: must be at least 2, got 1"),
        ({"threshold": 0.9, "first": 2}, {}, "first is for every; give that, or remove first"),
        ({"every": 2, "first": 3}, {"steps": 4}, "key step; give more steps, a smaller first, or"),
        ({"key_steps": [[0], [1]]}, {"steps": 4}, "key_steps has 2 lists, but there is one stage"),
        ({"key_steps": [[0]]}, {"steps": 9, "pyramid": 3}, "but there are 3 stages; give one for"),
        ({"key_steps": [[0, 9]]}, {"steps": 9}, "key step 9 is none of a stage of 9: they count"),
        ({"key_steps": [[1, 2]]}, {"steps": 4}, "every one of the 4 steps is a key step; give mo"),
        ({"every": 2}, {"steps": 2}, "every one of the 2 steps is a key step; give more steps"),
        ({"key_step": [[1]]}, {}, "unknown field 'key_step'; did you mean 'key_steps'? valid: key"),
    ],
)
def test_key_steps_that_cannot_be(rehash, fields, message):
    asked = {"accelerations": {"rehash": rehash}, **fields}
    assert message in refusal(lambda: solved(job(**asked)))


def test_key_steps_can_be_every_so_many():
    assert solved(job(steps=4, accelerations={"rehash": {"every": 2}})).accelerations.rehash


def test_a_preset_is_settings_and_a_jobs_own_take_their_place():
    own = {"adaptive": {"threshold": 0.5}}
    assert solved(job(steps=20)).accelerations == Accelerations()
    balanced = solved(job(steps=20, preset="balanced")).accelerations
    assert balanced == PRESETS["balanced"].settings != Accelerations()
    mixed = solved(job(steps=20, preset="balanced", accelerations=own)).accelerations
    assert mixed == Accelerations(adaptive=Adaptive(threshold=0.5))
    added = solved(job(steps=20, preset="fast", accelerations={"rehash": {"every": 2}}))
    assert added.accelerations.adaptive == PRESETS["fast"].settings.adaptive
    assert added.accelerations.rehash == Rehash(every=2)


def test_a_preset_is_a_familys_own_where_it_has_one():
    asked, preset = job(steps=20, preset="fast"), PRESETS["fast"]
    unet = resolve(asked, replace(GEOMETRY, family="animatediff"), DEFAULTS).accelerations
    assert unet == preset.by_family["animatediff"] != solved(asked).accelerations
    assert solved(asked).accelerations == preset.settings


def test_a_preset_that_could_do_nothing_is_refused_where_it_stands():
    said = refusal(solved, job(steps=2, preset="fast"))
    assert said.startswith("preset: has nothing to skip: steps are 2")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"slicing": {"slices": 1}}, "accelerations.slicing.slices: must be at least 2, got 1"),
        ({"slicing": {}}, "accelerations.slicing: needs slices or budget_gb"),
    ],
)
def test_slicing_that_would_cut_nothing_is_refused(asked, message):
    assert message in refusal(lambda: solved(job(steps=12, accelerations=asked)))


def test_all_accelerations_go_together():
    asked = {
        "adaptive": {}, "rehash": {"every": 2}, "slicing": {"slices": 4}, "fast_attention": {},
    }  # fmt: skip
    on = solved(job(steps=12, accelerations=asked)).accelerations
    assert all(getattr(on, name) is not None for name in type(on).model_fields)


@pytest.mark.parametrize("form", USUAL_THRESHOLDS)
def test_each_form_has_its_own_usual_threshold(form):
    asked = {"adaptive": {"form": form}}
    on = solved(job(steps=12, accelerations=asked)).accelerations.adaptive
    assert on.threshold == USUAL_THRESHOLDS[form] == Adaptive(form=form).threshold
    assert Adaptive(form=form, threshold=0.7).threshold == 0.7
    assert Adaptive().threshold == USUAL_THRESHOLDS["tensor"]


def test_plans_of_attention_do_not_stand_in_a_job():
    plan = {"rows": [["full"]] * 12, "window": [1, 1, 1]}
    asked = {"fast_attention": {"stages": [plan]}}
    said = refusal(lambda: solved(job(steps=12, accelerations=asked)))
    assert "fast_attention.stages: plans cannot stand in a job: longtake calibrate finds" in said
