"""The measures of long films: what they say of films with known faults, drawn by the world."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import judge
from benchmarks.long_films import draw_films, identity
from training import world
from training.world import Background, Body, Scene

pytestmark = pytest.mark.slow

STAR = Body(shape="star", colour="red", motion="circle")
SCENE = Scene(bodies=(STAR,), background=Background(pattern="striped", colour="gray"))


def frames(scene: Scene, seconds: int) -> np.ndarray:
    return world.render(scene, world.frame_times(12 * seconds))


def test_the_world_keeps_its_identity() -> None:
    said = identity(frames(SCENE, 8), SCENE)
    assert said["right"] == {"colour": 1.0, "shape": 1.0, "size": 1.0}
    assert (said["steady"], said["kept"]) == (1.0, 1.0)


@pytest.mark.parametrize("fault", [{"colour": "green"}, {"shape": "heart"}, {"size": "big"}])
def test_a_body_that_changes_is_noticed(fault: dict[str, str]) -> None:
    changed = replace(SCENE, bodies=(replace(STAR, **fault),))
    film = np.concatenate([frames(SCENE, 5), frames(changed, 3)])
    said = identity(film, SCENE)
    (name,) = fault
    assert said["right"] == {n: 5 / 8 if n == name else 1.0 for n in ("colour", "shape", "size")}
    assert (said["steady"], said["kept"]) == (5 / 8, 0.0)


def test_a_film_without_its_body_has_no_identity() -> None:
    empty = replace(SCENE, bodies=())
    said = identity(frames(empty, 4), SCENE)
    assert set(said["right"].values()) == {0.0} and said["kept"] == 0.0


def test_films_show_their_bodies_all_the_time() -> None:
    drawn = draw_films(8, seed=1)
    assert len(drawn) == 8
    for scene, _ in drawn:
        assert all(world.is_held_out(body) for body in scene.bodies)
        for start_s in (0.0, 60.0):
            second = world.render(scene, world.frame_times(12, start_s=start_s))
            assert len(judge.look(second)) == len(scene.bodies)
