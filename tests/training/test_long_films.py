"""The measures of long films: what they say of films with known faults, drawn by the world."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks import judge
from benchmarks.judge import LOOKS
from benchmarks.long_films import comes_again, draw_films, identity, measure, summaries
from jobs.spec_file import spec_from_flags
from orchestrator.borders import borders
from orchestrator.prepare import prepare
from tests.marks import few
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


@pytest.mark.parametrize(
    "fault", few([{"colour": "green"}, {"shape": "heart"}, {"size": "big"}], {"colour": "green"})
)
def test_a_body_that_changes_is_noticed(fault: dict[str, str]) -> None:
    changed = replace(SCENE, bodies=(replace(STAR, **fault),))
    film = np.concatenate([frames(SCENE, 5), frames(changed, 3)])
    said = identity(film, SCENE)
    (name,) = fault
    assert said["right"] == {n: 5 / 8 if n == name else 1.0 for n in ("colour", "shape", "size")}
    assert (said["steady"], said["kept"]) == (5 / 8, 0.0)
    assert said["kept_alone"] == {n: float(n != name) for n in ("colour", "shape", "size")}


def test_a_film_without_its_body_has_no_identity() -> None:
    empty = replace(SCENE, bodies=())
    said = identity(frames(empty, 4), SCENE)
    assert set(said["right"].values()) == {0.0} and said["kept"] == 0.0


def test_a_loop_is_noticed() -> None:
    own = np.random.default_rng(0).integers(0, 256, (120, 32, 32, 3), dtype=np.uint8)
    assert comes_again(own)["share"] > 0.9
    loop = np.concatenate([own[:36]] * 4)
    assert comes_again(loop) == {"share": pytest.approx(0, abs=1e-9), "lag_s": 3.0}
    faded = (loop // 2 + np.concatenate([own, own[:24]]) // 2).astype(np.uint8)
    assert 0.3 < comes_again(faded)["share"] < 0.7, "half of it comes again"
    assert comes_again(np.zeros_like(own))["share"] == 0.0


@pytest.mark.long
def test_films_vary() -> None:
    drawn = [scene for scene, _ in draw_films(9, seed=1)]
    assert [len(scene.bodies) for scene in drawn] == [1] * 5 + [2] * 4
    motions = [body.motion for scene in drawn for body in scene.bodies]
    assert len(set(motions[:5])) == 5 and len(set(motions[5:8])) == 3
    every = [scene.bodies[0].motion for scene, _ in draw_films(12, seed=1)]
    assert set(every[:6]) == {"bounce", "circle", "swing", "spin", "still", "zigzag"}


def test_a_film_keeps_its_rows() -> None:
    plan = prepare(spec_from_flags({"prompt": "a", "seconds": 4})).plan
    shown = frames(SCENE, 5)[: plan.shots[0].render.pixel_frames]
    changed = shown.copy()
    at = borders(plan)[2]["frame"]
    changed[at:] //= 2  # a cut to a darker film at the third border
    good, bad = (measure(plan, 0, film, SCENE) for film in (shown, changed))
    assert good["identity"]["by_second"] == {name: [1.0] * 4 for name in LOOKS}
    assert good["borders"]["at_s"] == [row["frame"] / 12 for row in borders(plan)]
    assert bad["borders"]["at_s"][2] == at / 12 and bad["borders"]["ratio"][2] > 5
    assert max(good["borders"]["ratio"]) < 1.5
    windows = len(plan.shots[0].stages[0].windows)
    for film in (good, bad):
        assert len(film["lab"]["at_s"]) == windows
        assert all(len(film["lab"][k][a]) == windows for k in ("mean", "spread") for a in "Lab")
    assert good["beat"] is None, "no pyramid, no beat"
    fall = bad["lab"]["mean"]["L"][-1] - bad["lab"]["mean"]["L"][0]
    assert fall < -20 and bad["lab"]["mean_per_minute"]["L"]["slope"] < -20
    assert abs(good["lab"]["mean_per_minute"]["L"]["slope"]) < 1


def test_summaries_are_of_all_films_and_of_each_half() -> None:
    plan = prepare(spec_from_flags({"prompt": "a", "seconds": 4})).plan
    ring = replace(STAR, shape="ring", colour="blue", motion="still", start=(0.73, 0.5))
    two = replace(SCENE, bodies=(replace(STAR, motion="still", start=(0.27, 0.5)), ring))
    wrong = replace(two, bodies=(two.bodies[0], replace(ring, colour="green")))
    films = [measure(plan, 0, frames(scene, 4), scene) for scene in (SCENE, two)]
    films.append(measure(plan, 0, frames(wrong, 4), two))
    said = summaries(films)
    assert said["1_bodies"]["right"]["colour"] == 1.0
    assert said["2_bodies"]["right"]["colour"] == 0.75
    assert said["all"]["right"]["colour"] == pytest.approx(5 / 6)
    assert said["2_bodies"]["films"]["kept"]["share"] == 1.0, "wrong, but the same throughout"
    spreads = [np.mean(film["lab"]["spread"]["b"]) for film in films]
    assert said["all"]["lab"]["spread"]["b"] == pytest.approx(np.mean(spreads))


@pytest.mark.long
def test_a_drift_that_all_films_share_is_told_from_chance() -> None:
    plan = prepare(spec_from_flags({"prompt": "a", "seconds": 4})).plan
    shown = frames(SCENE, 4)
    darker = np.linspace(1, [0.8, 0.78, 0.76], len(shown))[:, :, None, None, None]

    def slope(factors: list[np.ndarray]) -> dict[str, Any]:
        films = [measure(plan, 0, (shown * each).astype(np.uint8), SCENE) for each in factors]
        return summaries(films)["all"]["lab"]["mean_per_minute"]["L"]

    alike = slope([darker[:, n] for n in range(3)])
    low, high = alike["interval_95"]
    assert low < alike["slope"] < high < 0
    low, high = slope([darker[:, 0], darker[::-1, 0]])["interval_95"]
    assert low < 0 < high
    assert slope([darker[:, 0]])["interval_95"] is None


@pytest.mark.long
def test_films_show_their_bodies_all_the_time() -> None:
    drawn = draw_films(8, seed=1)
    assert len(drawn) == 8
    for scene, _ in drawn:
        assert all(world.is_held_out(body) for body in scene.bodies)
        for start_s in (0.0, 60.0):
            second = world.render(scene, world.frame_times(12, start_s=start_s))
            assert len(judge.look(second)) == len(scene.bodies)
