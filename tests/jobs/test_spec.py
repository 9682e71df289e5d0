"""What a job may say, and how it becomes concrete."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import BadJob
from jobs.families.family import ModelDefaults
from jobs.geometry import ModelGeometry
from jobs.model_scheduler import VALID
from jobs.spec import JobSpec, SchedulerName, resolve
from jobs.spec_file import parse_spec, spec_from_flags

GEOMETRY = ModelGeometry(
    family="wan",
    latent_channels=16,
    spatial_scale=8,
    temporal_scale=4,
    size_multiple=16,
    window_latent_frames=21,
    overlap_latent_frames=5,
    decode_context_latent_frames=38,
    experts=1,
    text_tokens=512,
    text_dim=4096,
)
DEFAULTS = ModelDefaults()


def job(**fields):
    return parse_spec({"prompt": "a kite", "seconds": 5} | fields)


def shots(*each, **fields):
    return parse_spec(
        {"shots": [{"prompt": "a kite", "seconds": 1} | shot for shot in each]} | fields
    )


def solved(spec):
    return resolve(spec, GEOMETRY, DEFAULTS)


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(BadJob) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def test_a_prompt_and_a_length_are_enough():
    film = solved(job())
    assert (film.width_px, film.height_px, film.fps, film.steps) == (832, 480, 16, 50)
    assert (film.window_latent_frames, film.overlap_latent_frames) == (21, 5)
    assert [shot.pixel_frames for shot in film.shots] == [80]
    assert film.shots[0].guidance == (5.0,)


def test_the_shorthand_is_one_shot():
    assert job() == shots({"seconds": 5})


def test_what_is_said_wins_over_the_defaults():
    film = solved(job(size=[64, 32], fps=24, steps=3, guidance=2, flow_shift=3, text_tokens=9))
    assert (film.width_px, film.height_px, film.fps, film.steps) == (64, 32, 24, 3)
    assert (film.flow_shift, film.text_tokens, film.shots[0].guidance) == (3.0, 9, (2.0,))


def test_a_shot_wins_over_the_job():
    film = solved(shots({"negative": "", "guidance": 1}, {}, negative="blur", guidance=7))
    assert [shot.negative_prompt for shot in film.shots] == ["", "blur"]
    assert [shot.guidance for shot in film.shots] == [(1.0,), (7.0,)]


def test_guidance_is_spread_over_experts_and_counted():
    two = ModelGeometry(
        **{name: getattr(GEOMETRY, name) for name in GEOMETRY.__slots__} | {"experts": 2}
    )
    assert resolve(job(guidance=4), two, DEFAULTS).shots[0].guidance == (4.0, 4.0)
    assert resolve(job(guidance=[4, 3]), two, DEFAULTS).shots[0].guidance == (4.0, 3.0)
    assert "guidance: has 2 values" in refusal(solved, job(guidance=[4, 3]))


def test_editing_one_shot_changes_no_other():
    before = solved(shots({}, {}, {}, seed=7)).shots
    after = solved(shots({}, {"prompt": "a gull", "seconds": 3, "seed": 99}, {}, seed=7)).shots
    assert (after[0], after[2]) == (before[0], before[2])
    assert [shot.seed for shot in before] == [7, 8, 9]


@pytest.mark.parametrize(
    ("seconds", "fps", "frames"),
    [(5, 16, 80), (0.35, 10, 4), (0.001, 16, 1), (1 / 32, 16, 1), (0.15, 10, 2), (2.5, 1, 3)],
)
def test_seconds_become_frames_half_up(seconds, fps, frames):
    assert solved(job(seconds=seconds, fps=fps)).pixel_frames == frames


@given(st.decimals("0.01", "86400", places=2), st.integers(1, 240))
def test_frames_are_the_nearest_to_the_length(seconds, fps):
    frames = solved(job(seconds=float(seconds), fps=fps)).pixel_frames
    assert frames == max(1, int((seconds * fps * 2 + 1) // 2))


def test_pixel_frames_are_taken_as_they_are():
    assert solved(parse_spec({"prompt": "x", "pixel_frames": 81})).pixel_frames == 81


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "  \n"}, "prompt: must not be empty"),
        ({"prompt": 5}, "prompt: needs text, got 5; put it in quotes"),
        ({"seconds": 0}, "seconds: must be more than 0, got 0"),
        ({"seconds": -1}, "seconds: must be more than 0"),
        ({"seconds": float("nan")}, "seconds: needs a finite number, got nan"),
        ({"seconds": float("inf")}, "seconds: needs a finite number, got inf"),
        ({"seconds": 86401}, "seconds: must be at most 86400"),
        ({"seconds": "5"}, "seconds: needs a number, got the text '5'; write 5 without quotes"),
        ({"seconds": True}, "seconds: needs a number, got the yes/no value true"),
        ({"pixel_frames": 3}, "seconds: give seconds or pixel_frames, not both"),
        ({"fps": 0}, "fps: must be at least 1"),
        ({"fps": 241}, "fps: must be at most 240"),
        ({"fps": 23.976}, "fps: needs a whole number, got 23.976"),
        ({"steps": 1001}, "steps: must be at most 1000"),
        ({"size": [9000, 16]}, "size[1]: must be at most 8192"),
        ({"size": [16]}, "size[2]: needs width and height"),
        ({"size": "big"}, "size: needs width and height"),
        ({"seed": -1}, "seed: must be at least 0"),
        ({"seed": True}, "seed: needs a whole number"),
        ({"guidance": -1}, "guidance[1]: must be at least 0"),
        ({"guidance": "high"}, "guidance: needs a number, or a list"),
        ({"flow_shift": 0}, "flow_shift: must be more than 0"),
        ({"version": 2}, "version: must be 1, got 2"),
        ({"dtype": "fp16"}, "valid: auto, float32, bfloat16, float16"),
        ({"repeated_noise": 1.5}, "repeated_noise: must be at most 1, got 1.5"),
        ({"decoder_dtype": "half"}, "decoder_dtype: unknown value 'half'; valid: auto, float32"),
        ({"scheduler": "eular"}, "did you mean 'euler'? valid: auto, unipc, euler, dpm++"),
        ({"numerics": "exact"}, "valid: any, pinned"),
        ({"output": {"codec": "h265"}}, "output.codec: unknown value 'h265'; did you mean 'h264'?"),
        ({"output": {"quality": 52}}, "output.quality: must be at most 51"),
        ({"output": {"crf": 5}}, "output.crf: unknown field 'crf'; valid: codec, quality"),
        ({"promt": "x"}, "promt: unknown field 'promt'; did you mean 'prompt'?"),
        ({"a[b": 1}, "unknown field 'a[b'"),
        ({"title": "a\nb"}, "title: must be one line"),
        ({"shots": []}, "prompt: stands at the top beside shots"),
    ],
)
def test_mistakes_are_named(fields, message):
    assert message in refusal(job, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"audio": {"file": "a.wav"}}, "audio: not built yet; remove it"),
        ({"regions": 2}, "regions: more than 1 is not built yet"),
        ({"fps": 16, "model_fps": 8}, "model_fps: a model_fps other than fps (16) is not built"),
    ],
)
def test_what_is_not_built_is_refused_by_name(fields, message):
    assert message in refusal(job, **fields)


HASH = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loras": "a"}, "loras: needs a list, got the text 'a'"),
        ({"loras": ["a"]}, "loras[1]: needs a mapping of names to values, got the text 'a'"),
        ({"loras": [{}]}, "loras[1].path: missing"),
        ({"loras": [{"path": 3}]}, "loras[1].path: needs text, got 3"),
        ({"loras": [{"path": ""}]}, "loras[1].path: needs at least 1"),
        ({"loras": [{"path": "a", "scale": "1"}]}, "loras[1].scale: needs a number"),
        ({"loras": [{"path": "a", "scale": float("nan")}]}, "loras[1].scale: needs a finite"),
        ({"loras": [{"path": "a", "sha256": "12"}]}, "loras[1].sha256: needs 64 hex digits"),
        ({"loras": [{"path": "a", "sha256": HASH.upper()}]}, "loras[1].sha256: needs 64 hex"),
        ({"loras": [{"path": "a", "scal": 1}]}, "did you mean 'scale'? valid: path, scale, sha256"),
        ({"audio": {"file": "a.wav", "offset_s": 1}}, "audio: not built yet"),
        ({"audio": "a.wav"}, "audio: needs a mapping of names to values, got the text"),
        ({"audio": {}}, "audio.file: missing"),
        ({"audio": {"file": "a", "offset_s": -1}}, "audio.offset_s: must be at least 0, got -1"),
        ({"audio": {"file": "a", "offset": 1}}, "unknown field 'offset'; did you mean 'offset_s'"),
        ({"image": 3}, "image: needs text, got 3"),
        ({"accelerations": {"rehsh": {}}}, "did you mean 'rehash'? valid: slicing, ad"),
        ({"accelerations": {"adaptive": {"treshold": 1.0}}}, "did you mean 'threshold'? valid: th"),
        (
            {"accelerations": {"adaptive": {"first": 1}}},
            "form tensor looks 3 steps back: give first: 3 or more",
        ),
        (
            {"accelerations": {"adaptive": {"form": "l2"}}},
            "form: unknown value 'l2'; valid: tensor",
        ),
        ({"accelerations": {"rehash": 2}}, "accelerations.rehash: needs a mapping of names"),
        ({"accelerations": "rehash"}, "accelerations: needs a mapping of names"),
    ],
)
def test_what_comes_later_has_its_form_already(fields, message):
    assert message in refusal(job, **fields)
    assert refusal(job, **fields).count("\n") == 0, "one mistake, one line"


@pytest.mark.parametrize(
    ("shot", "message"),
    [
        ({"image": 3}, "shots[1].image: needs text"),
        ({"crossfade_s": 1}, "shots[1].crossfade_s: not built yet; remove it (it goes with tr"),
        ({"crossfade_s": 0}, "shots[1].crossfade_s: must be more than 0"),
        ({"crossfade_s": "1"}, "shots[1].crossfade_s: needs a number"),
    ],
)
def test_a_shots_image_and_crossfade_have_their_form(shot, message):
    assert message in refusal(shots, shot)


def test_crossfades_are_refused():
    message = refusal(shots, {"transition": "crossfade", "crossfade_s": 1})
    assert "shots[1].transition: 'crossfade' is not built yet" in message
    assert "shots[1].crossfade_s: not built yet; remove it" in message


def test_a_model_fps_is_compared_with_the_models_own_fps():
    assert solved(job(model_fps=16)).fps == 16
    assert "model_fps" in refusal(solved, job(model_fps=8))


def test_what_stands_for_off_is_accepted():
    off = job(image=None, loras=[], audio=None, accelerations={}, regions=1)
    assert off == job() == job(loras=None, accelerations=None)


def test_all_mistakes_are_listed_at_once():
    message = refusal(job, fps=0, steps="9", loras=1, prompt="")
    assert message.startswith("4 problems in this job:")
    assert all(name in message for name in ("fps:", "steps:", "loras:", "prompt:"))


def test_thousands_of_mistakes_are_cut_short():
    message = refusal(job, **{f"x{i}": 1 for i in range(500)})
    assert "500 problems" in message and "and 470 more" in message


FROM_IMAGE = replace(
    GEOMETRY,
    family="svd",
    temporal_scale=1,
    window_latent_frames=14,
    overlap_latent_frames=0,
    from_image=True,
    single_window=True,
    refused=(
        ("prompt", "it reads no text"),
        ("text_tokens", "it always has 512"),
        ("loras", "none are built"),
    ),
)


def image_job(**fields):
    return parse_spec({"image": "a.png", "pixel_frames": 14} | fields)


def test_a_model_that_starts_from_an_image_needs_one_and_no_prompt():
    film = resolve(image_job(pyramid="off"), FROM_IMAGE, DEFAULTS)
    assert film.shots[0].prompt == ""
    assert "shots[1].image: missing; svd models" in refusal(
        resolve, parse_spec({"shots": [{"prompt": "a", "pixel_frames": 1}]}), FROM_IMAGE, DEFAULTS
    )


def test_a_model_that_starts_from_text_takes_no_image():
    both = refusal(solved, image_job())
    assert "image: wan models start from text alone; remove it" in both
    assert "this one has prompt, negative, flow_shift, " in both, "what it can do instead"
    assert "prompt: missing; say what the shot shows" in both
    assert "prompt" not in refusal(solved, image_job(prompt="a kite")).partition(":")[0]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"prompt": "a kite"},
            "prompt: it reads no text; remove it. Of the settings that only some models have, this "
            "one has image, negative, flow_shift, window_latent_frames, overlap_latent_frames, "
            "repeated_noise",
        ),
        ({"text_tokens": 77}, "text_tokens: it always has 512; remove it"),
        ({"loras": [{"path": "a"}]}, "loras: none are built; remove it"),
        ({"pyramid": 2}, "pyramid: this model makes each shot as one window"),
        ({"pixel_frames": 15}, "pixel_frames: 15 frames are too many: this model makes at most 14"),
        ({"pixel_frames": None, "seconds": 2, "fps": 8}, "at most 14 in a shot, 1.75 s at 8 fps"),
        ({"image": None, "prompt": " "}, "prompt: must not be empty"),
    ],
)
def test_what_a_model_of_one_window_has_no_use_for(fields, says):
    def both():
        resolve(image_job(**fields), FROM_IMAGE, DEFAULTS)

    assert says in refusal(both)
    assert refusal(both).count("\n") == 0, "one mistake, one line"


def test_what_a_model_has_anyway_may_be_said():
    assert resolve(image_job(text_tokens=512), FROM_IMAGE, DEFAULTS).text_tokens == 512


def test_a_missing_prompt_or_length_says_so():
    assert "prompt: missing" in refusal(parse_spec, {"seconds": 1})
    assert "seconds: missing" in refusal(parse_spec, {"prompt": "x"})
    assert "shots[1].seconds: missing" in refusal(parse_spec, {"shots": [{"prompt": "x"}]})


def test_a_size_must_fit_the_model():
    message = refusal(solved, job(size=[830, 480]))
    assert "multiples of 16" in message and "816x480 or 832x480" in message
    assert "the nearest: 8192x16" in refusal(solved, job(size=[8191, 17])).replace(
        "8176x16 or 8176x32 or ", ""
    )


def test_a_film_has_at_most_a_day():
    assert "the limit is 24 h" in refusal(solved, shots({"seconds": 86400}, {}))


def test_starts_must_be_contiguous():
    ok = shots({"start_s": 0, "seconds": 0.33}, {"start_s": 0.33}, {"start_s": 1.33})
    assert solved(ok).pixel_frames == 5 + 16 + 16
    message = refusal(solved, shots({"start_s": 0}, {"start_s": 2}))
    assert "shots[2].start_s: 2, but the shots before it end at 1" in message


def test_the_overlap_must_be_less_than_the_window():
    assert "overlap" in refusal(solved, job(window_latent_frames=4, overlap_latent_frames=4))
    assert solved(job(window_latent_frames=3)).overlap_latent_frames == 2
    assert solved(job(window_latent_frames=1)).overlap_latent_frames == 0


def test_the_canonical_form_is_json_and_reads_back():
    spec = shots({"guidance": 3}, {"seed": 2}, size="64x32", title="Käse")
    assert JobSpec.model_validate(spec.canonical()) == spec
    assert (
        spec.canonical()
        == shots({"guidance": [3.0]}, {"seed": 2}, size=[64, 32], title="Käse").canonical()
    )
    assert solved(spec).canonical()["shots"][0]["guidance"] == [3.0]


def test_a_spec_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        job().seed = 3


def test_flags_are_named_as_flags():
    assert refusal(spec_from_flags, {"prompt": "x", "seconds": 1, "fps": 0}).startswith("--fps: ")
    assert "--quality: must be at most 51" in refusal(
        spec_from_flags, {"prompt": "x", "seconds": 1, "quality": 99}
    )
    assert "--window-latent-frames" in refusal(
        spec_from_flags, {"prompt": "x", "seconds": 1, "window_latent_frames": 0}
    )


def test_flags_that_were_not_given_count_for_nothing():
    flags = {"prompt": "a kite", "seconds": 5, "fps": None, "codec": "ffv1", "size": "64x32"}
    assert spec_from_flags(flags) == job(output={"codec": "ffv1"}, size=[64, 32])


def test_a_job_can_name_every_scheduler_that_is_supported():
    assert set(get_args(SchedulerName)) == set(VALID)
