"""The judge reads the demo world back: everything, in clips whose truth is known."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import judge
from benchmarks.detectors import draw_clips, look_at_second, read_window, shares, through_h264
from benchmarks.model import judge_film, lengths_of
from tests.marks import few
from training import world
from training.world import Background, Body, Scene
from workers.video import encode_segment

pytestmark = pytest.mark.slow

GREEN = Background(pattern="checkered", colour="green")


def clip(scene: Scene, pixel_frames: int = judge.WINDOW_PIXEL_FRAMES) -> np.ndarray:
    return world.render(scene, world.frame_times(pixel_frames))


def moving(motion: str, **said: object) -> Scene:
    """A heart that does something, with a pillar if it hides."""
    size = "small" if motion == "hide" else "medium"
    body = replace(Body(shape="heart", colour="red", motion=motion, size=size, phase=0.2), **said)
    pillar = world.PILLAR_WIDTH * world.RADII[size] if motion == "hide" else 0.0
    backdrop = Background(pattern="dotted", colour="gray", pillar=pillar)
    return Scene(bodies=(body,), background=backdrop)


@pytest.mark.parametrize("motion", few(world.MOTIONS, "bounce", "circle"))
def test_every_motion_is_told(motion: str) -> None:
    scene = moving(motion)
    found = judge.read(clip(scene)).matches(scene)
    assert min(found.values()) == 1.0, found
    assert ("tempo" in found) == (motion not in ("still", "spin"))


@pytest.mark.parametrize("motion", few(["left", "bounce", "circle", "pulse", "zigzag"], "bounce"))
@pytest.mark.parametrize("tempo", world.TEMPOS)
def test_every_tempo_is_told(motion: str, tempo: str) -> None:
    reading = judge.read(clip(moving(motion, tempo=tempo)))
    for other in world.TEMPOS:
        assert reading.matches(moving(motion, tempo=other))["tempo"] == float(other == tempo)


def test_a_body_is_far_from_the_path_of_another_motion() -> None:
    reading = judge.read(clip(moving("circle")))
    (own,) = reading.distances(moving("circle"))["from_right_motion"]
    assert own < judge.ON_PATH
    for motion in ("left", "up", "bounce", "swing", "still", "hide"):
        told = reading.distances(moving(motion))
        assert told["from_right_motion"][0] > 2 * own, motion
        assert told["from_read_motion"] == [own]
        assert reading.matches(moving(motion))["path"] == 0.0


@pytest.mark.parametrize("shape", few(world.SHAPES, "star"))
def test_a_still_body_of_any_shape_stays(shape: str) -> None:
    scene = moving("still", shape=shape)
    assert judge.read(clip(scene)).matches(scene)["motion"] == 1.0


@pytest.mark.parametrize("shape", few(world.SHAPES, "star"))
@pytest.mark.parametrize("size", ["medium", "big"])
def test_a_shape_is_told_that_is_never_seen_whole(shape: str, size: str) -> None:
    """It has left by a half when the clip begins, and comes back by as much in the end."""
    scene = moving("down", shape=shape, size=size, tempo="slow", phase=0.81)
    found = judge.read(clip(scene, 24)).matches(scene)
    assert found["shape"] == 1.0 and found["motion"] == 1.0


@pytest.mark.parametrize("shape", few(world.SHAPES, "circle", "star"))
def test_every_shape_is_told_through_h264(shape: str) -> None:
    scene = Scene(bodies=(Body(shape=shape, colour="yellow", motion="circle"),), background=GREEN)
    found = judge.read(through_h264(clip(scene))).matches(scene)
    assert min(found.values()) == 1.0, found


def test_two_bodies_are_told_apart_in_either_order() -> None:
    star = Body(shape="star", colour="red", motion="bounce", start=(0.27, 0.5))
    ring = Body(shape="ring", colour="blue", motion="still", start=(0.73, 0.5), size="small")
    scene = Scene(bodies=(star, ring), background=GREEN)
    swapped = Scene(bodies=(ring, star), background=GREEN)
    reading = judge.read(clip(scene))
    assert min(reading.matches(scene).values()) == 1.0
    assert reading.matches(swapped) == reading.matches(scene)
    for alone in (star, ring):
        found = reading.matches(Scene(bodies=(alone,), background=GREEN))
        assert (found["shape"], found["count"]) == (1.0, 0.0), "the other one is too much"
    one = Scene(bodies=(star,), background=GREEN)
    assert judge.read(clip(one)).matches(scene)["shape"] == 0.5
    assert judge.read(clip(one)).matches(scene)["count"] == 0.0


@pytest.mark.parametrize("motion", few(world.MOTIONS, "bounce"))
def test_an_empty_clip_has_the_wrong_count(motion: str) -> None:
    scene = moving(motion)
    empty = judge.read(clip(Scene(bodies=(), background=scene.background)))
    assert empty.matches(scene)["count"] == 0.0
    assert empty.matches(scene)["path"] == 0.0


@pytest.mark.parametrize(
    ("motion", "tempo"),
    few(
        itertools.product(["left", "right", "up", "down", "hide"], world.TEMPOS), ("hide", "quick")
    ),
)
def test_what_leaves_may_be_missed_as_long_as_the_world_misses_it(motion: str, tempo: str) -> None:
    missed = []
    for phase in np.arange(12) / 12:
        scene = moving(motion, tempo=tempo, phase=float(phase))
        reading = judge.read(clip(scene))
        assert reading.matches(scene)["count"] == 1.0
        missed.append(int((reading.count_F == 0).sum()))
    most = judge.most_unseen(scene.bodies[0], 17, 12)
    assert max(missed) <= most < 17
    assert most <= max(missed) + 4, "no looser than needed"


def test_a_body_that_leaves_for_too_long_has_the_wrong_count() -> None:
    scene = moving("left", phase=0.3)
    here, gone = clip(scene), clip(replace(scene, bodies=()))
    may_miss = judge.most_unseen(scene.bodies[0], 17, 12)
    assert 3 <= may_miss <= 8 and judge.read(here).count_F.tolist() == [1] * 17
    for missed, right in ((may_miss, 1.0), (may_miss + 1, (16 - may_miss) / 17)):
        film = np.concatenate([here[: 17 - missed], gone[17 - missed :]])
        assert judge.read(film).matches(scene)["count"] == pytest.approx(right)


def test_an_empty_frame_has_no_body() -> None:
    scene = Scene(bodies=(), background=GREEN)
    reading = judge.read(clip(scene))
    assert reading.bodies == () and reading.background == GREEN and not reading.count_F.any()


def test_shares_are_of_those_that_have_the_property() -> None:
    said = shares([{"shape": 1.0, "tempo": 1.0}, {"shape": 0.0}])
    assert (said["shape"]["share"], said["tempo"]["share"]) == (0.5, 1.0)
    assert said["tempo"]["of"] == 1 and "of" not in said["shape"]


@pytest.mark.long
def test_detectors_are_right_on_the_truth_and_not_on_another_scene() -> None:
    for prove, wanted in ((read_window, lambda _: True), (look_at_second, judge.is_steady)):
        clips = draw_clips(3, 0, wanted)
        assert all(wanted(scene) for scene, *_ in clips)
        for clip_ in clips:
            told = prove(clip_)
            hits = told[0] if prove is read_window else told
            assert min(hits["raw"].values()) == min(hits["h264"].values()) == 1.0
            if clip_[0] != clip_[2]:
                assert min(hits["shuffled"].values()) < 1.0


def test_shares_have_intervals() -> None:
    said = shares([{"shape": 1.0}] * 9 + [{"shape": 0.0}])
    assert said["shape"]["share"] == 0.9
    low, high = said["shape"]["interval_95"]
    assert 0.55 < low < 0.65 and 0.97 < high < 1.0


def test_both_windows_of_a_shot_are_judged(tmp_path: Path) -> None:
    """A film of two shots, the second of which turns another colour in its second half."""
    scene, green = moving("still"), moving("still", colour="green")
    lengths = lengths_of("demo")
    assert (lengths.window, lengths.shot) == (17, 29)
    right = clip(scene, lengths.shot)
    film = np.concatenate([right, right[:12], clip(green, 17)])
    path = tmp_path / "film.mp4"
    path.write_bytes(encode_segment(film, fps=12, codec="h264", quality=18))
    said = judge_film(path, [scene, scene], lengths)
    assert said["starts"]["all"]["shape"]["share"] == 1.0
    assert said["inside"]["all"]["colour"]["share"] == 0.5
    assert said["inside"]["1_bodies"]["clips"] == 2
    assert said["inside"]["all"]["apart"]["from_right_motion"]["mean"] < judge.ON_PATH
