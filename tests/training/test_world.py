"""The demo world: same seed, same pictures; what captions say is true; time is continuous."""

import numpy as np
import pytest

from training import captions, world
from training.world import Background, Body, Scene


def scene_of(seed: int) -> Scene:
    return world.sample_scene(np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(4))
def test_same_seed_same_scene_same_frames(seed: int) -> None:
    first, second = scene_of(seed), scene_of(seed)
    assert first == second
    times_s = world.frame_times(5)
    assert np.array_equal(world.render(first, times_s), world.render(second, times_s))


def test_a_clip_is_a_function_of_time_alone() -> None:
    scene = scene_of(1)
    whole = world.render(scene, world.frame_times(24))
    half_rate = world.render(scene, world.frame_times(12, fps=6.0))
    late = world.render(scene, world.frame_times(6, start_s=1.0))
    assert np.array_equal(whole[::2], half_rate)
    assert np.abs(whole[12:18].astype(int) - late).mean() < 0.5


@pytest.mark.parametrize("motion", world.MOTIONS)
def test_every_motion_goes_on_for_a_minute(motion: str) -> None:
    body = Body(shape="star", colour="red", motion=motion, size="big")
    where = world.pose(body, world.frame_times(720))
    for values_F in (where.x_F, where.y_F):
        assert values_F.min() > -0.35 and values_F.max() < 1.35
    assert where.x_F.shape == where.angle_F.shape == (720,)
    if motion != "still":
        late = np.stack([where.x_F, where.y_F, where.radius_F, where.angle_F])[:, -24:]
        assert np.ptp(late, axis=1).max() > 0.05


@pytest.mark.parametrize("shape", world.SHAPES)
def test_every_shape_is_drawn_in_its_colour(shape: str) -> None:
    background = Background(pattern="plain", colour="gray")
    scene = Scene(bodies=(Body(shape=shape, colour="red", size="big"),), background=background)
    frame = world.render(scene, world.frame_times(1))[0]
    is_red = np.abs(frame.astype(int) - world.COLOURS["red"]).max(axis=-1) < 3
    assert 0.03 < is_red.mean() < 0.2
    assert tuple(frame[0, 0]) == world.BACKGROUND_COLOURS["gray"]


@pytest.mark.parametrize("seed", range(30))
def test_captions_are_true(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = world.sample_scene(rng)
    words = captions.caption(scene, rng).replace(",", "").split()
    told = {*captions.COLOUR_WORDS[scene.background.colour]}
    for body in scene.bodies:
        assert set(words) & set(captions.SHAPE_WORDS[body.shape])
        assert set(words) & set(captions.COLOUR_WORDS[body.colour])
        told |= {*captions.COLOUR_WORDS[body.colour]}
    others = {w for c in world.COLOURS for w in captions.COLOUR_WORDS[c]}
    assert not set(words) & (others - told)
    assert set(words) <= set(captions.vocabulary())
    motion = scene.bodies[0].motion
    if motion in ("left", "right"):
        assert motion in words
        assert {"left": "right", "right": "left"}[motion] not in words


def test_two_bodies_are_both_told_of() -> None:
    background = Background(pattern="striped", colour="blue")
    bodies = (Body(shape="star", colour="red"), Body(shape="heart", colour="green"))
    told = captions.caption(Scene(bodies=bodies, background=background), np.random.default_rng(0))
    assert {"red", "star", "green", "heart"} <= set(told.replace(",", "").split())


def test_held_out_combinations_and_wordings_are_never_trained_on() -> None:
    rng = np.random.default_rng(0)
    for held_out in (False, True):
        for _ in range(100):
            scene = world.sample_scene(rng, held_out=held_out)
            assert all(world.is_held_out(body) == held_out for body in scene.bodies)
            said = captions.caption(scene, rng, held_out=held_out)
            assert captions.is_held_out(said) == held_out
            said_words = set(said.replace(",", "").split())
            if held_out:
                assert said_words & {"background", "stripes", "dots", "gradient", "checkerboard"}


def test_names_alone_make_no_other_wording() -> None:
    for number in range(20):
        wording = "{} " + f"spins {number * 'very '}on a blue background"
        names = ("a red star", "an orange heart", "a white box")
        assert len({captions.is_held_out(wording.format(name)) for name in names}) == 1


def test_some_scenes_have_two_bodies_that_never_meet() -> None:
    rng = np.random.default_rng(0)
    scenes = [world.sample_scene(rng) for _ in range(400)]
    pairs = [scene for scene in scenes if len(scene.bodies) == 2]
    assert 60 < len(pairs) < 140
    for scene in pairs:
        left, right = sorted(scene.bodies, key=lambda body: body.start[0])
        one, two = (world.pose(body, world.frame_times(240)) for body in (left, right))
        assert (one.x_F + one.radius_F).max() < 0.52 and (two.x_F - two.radius_F).min() > 0.48
        assert left.shape != right.shape and left.colour != right.colour


def test_what_hides_is_gone_for_a_while() -> None:
    body = Body(shape="square", colour="red", motion="hide", size="small")
    pillar = world.PILLAR_WIDTH * world.RADII["small"]
    background = Background(pattern="plain", colour="blue", pillar=pillar)
    frames = world.render(Scene(bodies=(body,), background=background), world.frame_times(36))
    red_F = (np.abs(frames.astype(int) - world.COLOURS["red"]).max(axis=-1) < 3).sum(axis=(1, 2))
    assert red_F.max() > 200 and red_F.min() == 0
