"""What a job says of the pyramid, and what becomes of it with weights that know one or none."""

from dataclasses import replace

import pytest

from jobs.model_scheduler import SCHEDULERS, check_pyramid
from jobs.spec import resolve
from tests.jobs.test_spec import DEFAULTS, GEOMETRY, job, refusal

TRAINED = replace(DEFAULTS, steps=20, pyramid_steps=(1, 1, 1))
UNTRAINED = replace(DEFAULTS, steps=20)


def steps(defaults=TRAINED, **fields) -> tuple[int, ...]:
    return resolve(job(**fields), GEOMETRY, defaults).stage_steps


def warnings(defaults=TRAINED, **fields) -> tuple[str, ...]:
    return resolve(job(**fields), GEOMETRY, defaults).warnings


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5, "pyramid: must be off, auto or a whole number from 2 to 4, got 5"),
        (1, "from 2 to 4, got 1"),
        (3.0, "from 2 to 4, got 3.0"),
        (True, "from 2 to 4, got the yes/no value true"),
        (None, "from 2 to 4, got nothing"),
        ([3], "from 2 to 4, got a list of 1"),
        ("3", "from 2 to 4, got the text '3'"),
    ],
)
def test_what_is_no_pyramid(value, message):
    told = refusal(job, pyramid=value)
    assert message in told and told.count("\n") == 0


def test_weights_say_what_they_were_trained_for():
    assert steps() == steps(pyramid="auto") == steps(pyramid=3) == (7, 7, 6)
    assert steps(pyramid="off") == steps(pyramid=False) == (20,)
    assert steps(UNTRAINED) == (20,)
    assert steps(replace(TRAINED, pyramid_steps=(4, 2, 1))) == (11, 6, 3)


def test_a_job_may_share_its_steps_out_otherwise():
    assert steps(pyramid_steps=[2, 1, 1]) == steps(pyramid_steps="2-1-1") == (10, 5, 5)
    assert steps(UNTRAINED, pyramid=2, pyramid_steps=[3, 1]) == (15, 5)
    assert steps(pyramid=2) == (10, 10), "the weights' shares are for three"


def test_a_person_is_warned_of_what_the_weights_do_not_know():
    assert warnings() == warnings(UNTRAINED) == warnings(UNTRAINED, pyramid="off") == ()
    (said,) = warnings(UNTRAINED, pyramid=3)
    assert "trained for no pyramid: expect worse motion (the demo model then made 31" in said
    assert "instead of 48); python -m training.tpdiff trains them for one" in said
    assert "of 2 stages is asked for" in warnings(pyramid=2)[0]
    (said,) = warnings(pyramid="off")
    assert said == (
        "these weights were trained for a pyramid of 3 stages, which is off: expect hardly worse "
        "motion (demo-pyramid then made 57 motions of 100 as told, instead of 61)"
    )


def test_no_training_is_told_of_that_does_not_exist():
    geometry = replace(GEOMETRY, family="hunyuan-video")
    (said,) = resolve(job(pyramid=3), geometry, UNTRAINED).warnings
    assert said.endswith("trained for no pyramid: its fidelity has not been measured")


@pytest.mark.parametrize(
    ("family", "defaults", "stages"),
    [("animatediff", UNTRAINED, 2), ("animatediff", TRAINED, 4)],
)
def test_what_was_not_measured_is_not_claimed(family, defaults, stages):
    geometry = replace(GEOMETRY, family=family)
    (said,) = resolve(job(pyramid=stages), geometry, defaults).warnings
    assert f"a pyramid of {stages} stages is asked for" in said
    assert "its fidelity has not been measured; python -m" in said and "demo" not in said


@pytest.mark.parametrize(
    ("defaults", "fields", "message"),
    [
        (TRAINED, {"steps": 2}, "steps: 2 steps are too few for a pyramid of 3 stages"),
        (TRAINED, {"pyramid_steps": [1, 1]}, "has 2 shares, but the pyramid has 3 stages"),
        (
            TRAINED,
            {"pyramid": "off", "pyramid_steps": [1, 1]},
            "there is no pyramid, for it is off",
        ),
        (UNTRAINED, {"pyramid_steps": [1, 1]}, "trained for none; say pyramid: 2, or remove it"),
        (
            UNTRAINED,
            {"pyramid_first_stage": "whole"},
            "pyramid_first_stage: there is no pyramid whose first stage could be whole",
        ),
        (
            TRAINED,
            {"pyramid_first_stage": "whole", "accelerations": {"fast_attention": {}}},
            "goes by a calibration on windows: remove it, or give pyramid_first_stage: windows",
        ),
    ],
)
def test_what_does_not_go_together(defaults, fields, message):
    assert message in refusal(steps, defaults, **fields)


@pytest.mark.parametrize("value", [[1], [0, 1], "1", "2-x", [1, 1, 1, 1, 1]])
def test_shares_have_a_form(value):
    assert "pyramid_steps" in refusal(job, pyramid_steps=value)


@pytest.mark.parametrize(
    ("diffusion", "name", "setting", "value"),
    [
        ("flow", "unipc", "use_karras_sigmas", True),
        ("flow", "euler", "shift_terminal", 0.02),
        ("flow", "dpm++", "final_sigmas_type", "sigma_min"),
        ("variance", "dpm++", "use_karras_sigmas", True),
        ("variance", "unipc", "use_karras_sigmas", True),
    ],
)
def test_settings_that_shape_a_whole_schedule_are_refused(diffusion, name, setting, value):
    own = {"_class_name": SCHEDULERS[diffusion][name].class_name}
    check_pyramid(name, own, diffusion)
    message = refusal(check_pyramid, name, own | {setting: value}, diffusion)
    assert f"{setting}={value!r} cannot be divided" in message and "pyramid: off" in message
