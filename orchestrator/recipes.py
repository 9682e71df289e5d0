"""Recipe keys: the names under which results are stored, computable before anything runs.

A recipe holds everything that a result depends on and nothing else, so jobs share results, and
changing one shot leaves the results of all others valid. Two kinds of result belong to one job, and
name it: the states of unfinished steps, which their job deletes when it has got past them, and all
results of a job that pins its numerics class, which is known only once a worker has joined. Pure.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from jobs.units import Unit
from jobs.versions import ENCODER_VERSION, PROMPTS_VERSION
from orchestrator.plan import Plan

RECIPE_VERSION = 1


class Recipes:
    """The recipe keys of the units of a plan and its job: 64 hex digits each."""

    def __init__(self, plan: Plan, job: str) -> None:
        self._plan, self._job = plan, job
        self._shot_key = lru_cache(maxsize=None)(self._shot)

    def key(self, unit: Unit) -> str:
        if unit.kind == "encode":
            return _key(self._prompts(unit.shot))
        if unit.kind == "step":
            place = [unit.stage, unit.index, unit.region, unit.step]
            owner = {} if self._plan.is_last_step(unit) else {"owner": [self._job, unit.shot]}
            return _key({"shot": self._shot_key(unit.shot), "step": place} | owner)
        return _key({"shot": self._shot_key(unit.shot), "piece": self._piece(unit)})

    def _base(self) -> dict[str, Any]:
        plan = self._plan
        return {
            "recipe": RECIPE_VERSION,
            "model": plan.model_identity,
            "family": plan.geometry.family,
            "dtype": plan.dtype,
            "threads": plan.threads,
            "numerics": ["pinned", self._job] if plan.numerics == "pinned" else "any",
        }

    def _prompts(self, shot: int) -> dict[str, Any]:
        render = self._plan.shots[shot].render
        guided = self._plan.geometry.has_two_branches(render.guidance)
        told: dict[str, Any] = {
            "prompts": PROMPTS_VERSION,
            "prompt": render.prompt,
            "negative": render.negative_prompt if guided else None,
            "text_tokens": render.text_tokens,
        }
        if render.image is not None:
            # Fitted to the film's size, with noise of the shot; the model is told the frame rate.
            size = [render.latent_height, render.latent_width]
            told["image"] = [render.image.sha256, render.seed, size, render.fps]
        return self._base() | told

    def _shot(self, shot: int) -> str:
        plan = self._plan.shots[shot]
        render = plan.render
        layout = [
            [stage.stride, stage.steps, [[w.start, w.stop] for w in stage.windows]]
            for stage in plan.stages
        ]
        return _key(
            self._prompts(shot)
            | {
                "planner": self._plan.planner_version,
                "accelerations": self._accelerations(),
                "noise": self._plan.noise_version,
                "seed": render.seed,
                "guidance": list(render.guidance),
                "scheduler": render.scheduler,
                "flow_shift": render.flow_shift,
                "latent_size": [render.latent_frames, render.latent_height, render.latent_width],
                "layout": layout,
                "stage_positions": render.stage_positions,
            }
            | ({"fps": render.fps} if self._plan.geometry.time_in_seconds else {})
            | ({"repeated_noise": asdict(repeated)} if (repeated := render.repeated_noise) else {})
        )

    def _accelerations(self) -> dict[str, Any]:
        asked = self._plan.accelerations.recipe()
        return asked and asked | {"version": self._plan.accelerations_version}

    def _piece(self, unit: Unit) -> dict[str, Any]:
        plan = self._plan
        shot = plan.shots[unit.shot]
        return {
            "range": list(shot.pieces[unit.index]),
            "pixel_frames": shot.render.pixel_frames,
            "fps": plan.fps,
            "codec": plan.codec,
            "quality": plan.quality,
            "encoder": ENCODER_VERSION,
        } | ({} if plan.decoder_dtype == "float32" else {"decoder_dtype": plan.decoder_dtype})


def film_key(plan: Plan) -> str:
    """Names a film by all that its bits depend on: the recipes of its pieces, in order.

    A title, a model's place or an estimate of memory is no part of it.
    """
    recipes = Recipes(plan, job="")
    return _key({"pieces": [recipes.key(goal) for goal in plan.goals()]})


def _key(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
