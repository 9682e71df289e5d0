"""Our own accelerations as sweeps: for a job, the accelerations of each setting of a kind, by the
value that is swept. What others offer is in ``peers.py``."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.peers import OF_FAMILY
from jobs.families.family import FamilyFacts
from jobs.rehash_profile import Similarity, key_steps
from jobs.spec import JobSpec
from orchestrator.calibrate import calibrate, find_key_steps
from orchestrator.prepare import Prepared, prepare

Job = Mapping[str, Any]

#: No more than this much of the latents' pace is asked of any change: never the model, that is.
NEVER = 100.0

SCALAR = (0.005, 0.01, 0.02, 0.05, 0.1)
TENSOR = (0.1, 0.2, 0.4, 0.8, 1.6)
PROFILED = (0.999, 0.998, 0.995, 0.993, 0.991, 0.99, 0.98)
SPECTRAL = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7)


def _adaptive(form: str, threshold: float, **more: Any) -> dict[str, Any]:
    return {"adaptive": {"form": form, "threshold": threshold, **more}}


def adaptive_tensor(job: Job, **more: Any) -> dict[str, Any]:
    """AdaptiveDiffusion as its paper has it."""
    return {str(t): _adaptive("tensor", t, **more) for t in TENSOR}


def adaptive_scalar(job: Job, **more: Any) -> dict[str, Any]:
    """The criterion of its released code."""
    return {str(t): _adaptive("scalar", t, **more) for t in SCALAR}


def adaptive_spectral(job: Job, forecast: bool) -> dict[str, Any]:
    """SeaCache's criterion; a skipped step takes the last prediction, or one on a line."""
    return {str(t): _adaptive("spectral", t, first=1, forecast=forecast) for t in SPECTRAL}


def stride(job: Job) -> dict[str, Any]:
    """Its baseline, which looks at nothing."""
    return {str(n): _adaptive("tensor", NEVER, most_skips=n - 1) for n in (2, 3, 4, 5)}


def rehash_every(job: Job) -> dict[str, Any]:
    """Key steps that look at nothing, after the first tenth of all, and after the first alone."""
    usual = {str(n): {"rehash": {"every": n}} for n in (2, 3, 4)}
    return usual | {f"{n}, first 1": {"rehash": {"every": n, "first": 1}} for n in (2, 3, 4)}


def rehash_profile(job: Job) -> dict[str, Any]:
    """Key steps that two other prompts' features were found to need."""
    folder, profile = _profiled(json.dumps(job, sort_keys=True))
    kept = {"profiles": str(folder)}
    return {str(t): {"rehash": {"threshold": t, **kept}} for t in PROFILED if reuses(profile, t)}


@cache
def _profiled(job: str) -> tuple[Path, Sequence[Similarity]]:
    """A job's profile, made once, and the folder that holds it; the job is JSON."""
    folder = _new_folder()
    _, profile = find_key_steps(_calibrated_on(json.loads(job)), "cpu", PROFILED[0], folder)
    return folder, profile


def reuses(profile: Sequence[Similarity], threshold: float) -> bool:
    """Whether a threshold leaves any stage a step that is no key step."""
    return any(len(key_steps(each, threshold)) < len(each) for each in profile)


def adaptive_rehash(job: Job) -> dict[str, Any]:
    """The steps that are not skipped run in full only if they are key steps, by the second of the
    thresholds that leave something out (on the demo model, 0.998)."""
    keys = [*rehash_profile(job).values()][1:2]
    return {str(t): _adaptive("scalar", t) | rehash for rehash in keys for t in SCALAR}


def fast_attention(job: Job) -> dict[str, Any]:
    """Plans that were searched on two other prompts, by the change that they may bring."""
    return {str(delta): _planned(job, delta) for delta in (0.05, 0.1, 0.2, 0.4)}


def adaptive_fast_attention(job: Job) -> dict[str, Any]:
    """Sparing attention in the steps that are not skipped."""
    plans = _planned(job, 0.05)
    return {str(t): _adaptive("spectral", t, first=1, forecast=True) | plans for t in SPECTRAL}


def _planned(job: Job, delta: float) -> dict[str, Any]:
    folder = _new_folder()
    calibrate(_calibrated_on(job), "cpu", delta, folder, lambda said: None)
    return {"fast_attention": {"plans": str(folder)}}


def _new_folder() -> Path:
    """Removed when the process ends."""
    folder = tempfile.mkdtemp(prefix="longtake-bench-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _calibrated_on(job: Job) -> Prepared:
    told = [{**asked, "pixel_frames": job["pixel_frames"]} for asked in job["told"]]
    names = ("model", "steps", "pyramid", "scheduler")
    known = {name: job[name] for name in names if name in job}
    return prepare(JobSpec.model_validate({"version": 1, **known, "shots": told}))


#: What the presets have where a scheduler adds noise.
OF_NOISE = "adaptive scalar, last 3"

#: Ours: for a job, the accelerations of each setting.
KINDS: dict[str, Callable[[Job], dict[str, Any]]] = {
    "adaptive": adaptive_tensor,
    "adaptive, most skips 2": partial(adaptive_tensor, most_skips=2),
    "adaptive scalar": adaptive_scalar,
    OF_NOISE: partial(adaptive_scalar, last=3),
    "adaptive spectral": partial(adaptive_spectral, forecast=False),
    "adaptive spectral, forecast": partial(adaptive_spectral, forecast=True),
    "every so many steps": stride,
    "rehash every": rehash_every,
    "rehash profile": rehash_profile,
    "adaptive scalar, rehash": adaptive_rehash,
    "fast attention": fast_attention,
    "adaptive spectral, forecast, fast attention": adaptive_fast_attention,
}

#: Of these with a pyramid: what it does by itself, and with what else.
PYRAMID_KINDS: dict[str, Callable[[Job], dict[str, Any]]] = {
    "pyramid": lambda job: {"alone": {}},
    "pyramid, adaptive": adaptive_tensor,
    "pyramid, adaptive scalar": adaptive_scalar,
    "pyramid, adaptive spectral": partial(adaptive_spectral, forecast=False),
    "pyramid, adaptive spectral, forecast": partial(adaptive_spectral, forecast=True),
}

#: The twin for a pyramid of the models that ship, by family.
PYRAMIDS = {"wan": "demo-pyramid", "animatediff": "demo-animatediff-pyramid"}


def fitting(family: FamilyFacts) -> list[str]:
    """The kinds for a family, with the peers that are tuned for it."""
    peers = [*OF_FAMILY.get(family.name, ())]
    windowed = "fast_attention" in family.accelerations
    ours = [kind for kind in KINDS if kind != OF_NOISE]
    return [kind for kind in ours if windowed or "fast attention" not in kind] + peers


def with_noise() -> list[str]:
    """The kinds for a scheduler that adds noise."""
    return ["adaptive", "adaptive scalar", OF_NOISE, "every so many steps"]
