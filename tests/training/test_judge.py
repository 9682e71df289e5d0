"""The judge reads the demo world back: everything, in clips whose truth is known."""

import numpy as np
import pytest

from benchmarks import judge
from benchmarks.detectors import shares, through_h264
from training import world
from training.world import Background, Body, Scene

pytestmark = pytest.mark.slow

GREEN = Background(pattern="checkered", colour="green")


def clip(scene: Scene, pixel_frames: int = 29) -> np.ndarray:
    return world.render(scene, world.frame_times(pixel_frames))


@pytest.mark.parametrize("motion", world.MOTIONS)
def test_every_motion_is_told(motion: str) -> None:
    size = "small" if motion == "hide" else "medium"
    body = Body(shape="heart", colour="red", motion=motion, size=size, phase=0.2)
    pillar = world.PILLAR_WIDTH * world.RADII[size] if motion == "hide" else 0.0
    scene = Scene(
        bodies=(body,), background=Background(pattern="dotted", colour="gray", pillar=pillar)
    )
    found = judge.read(clip(scene)).matches(scene)
    assert min(found.values()) == 1.0, found


@pytest.mark.parametrize("shape", world.SHAPES)
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


def test_an_empty_frame_has_no_body() -> None:
    scene = Scene(bodies=(), background=GREEN)
    reading = judge.read(clip(scene))
    assert reading.bodies == () and reading.background == GREEN and not reading.count_F.any()


def test_shares_have_intervals() -> None:
    said = shares([{"shape": 1.0}] * 9 + [{"shape": 0.0}])
    assert said["shape"]["share"] == 0.9
    low, high = said["shape"]["interval_95"]
    assert 0.55 < low < 0.65 and 0.97 < high < 1.0
