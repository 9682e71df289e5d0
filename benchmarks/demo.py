"""``make demo``: render a film with the embedded model, and say what happened.

Running it again after an interruption goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

from jobs.errors import LongtakeError
from jobs.spec_file import load_spec
from jobs.store import Store
from orchestrator.inspect_job import job_state, journal_records
from orchestrator.plan import Plan
from orchestrator.prepare import plan_from_json, prepare
from orchestrator.recipes import film_key
from workers.contact_sheet import Row, contact_sheet

ROOT = Path(__file__).resolve().parent.parent
FILM, OUT, SHEET = ROOT / "examples" / "demo.yaml", Path("demo.mp4"), Path("demo.png")
STORE = Path("demo-store")


def run(command: list[str]) -> tuple[int, str]:
    """The command's exit code and standard output. A Ctrl-C reaches it as it reaches us: it is
    given the time to leave its job in order and to say how to go on."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while True:
            try:
                printed, _ = process.communicate()
                return process.returncode, printed
            except KeyboardInterrupt:
                continue


def begun_job(plan: Plan) -> str | None:
    """A job of the same film that was begun, or even finished, and can be gone on with."""
    if not STORE.exists():
        return None
    store = Store.open(STORE, create=False, writable=False)
    for folder in map(store.job, store.jobs()):
        with contextlib.suppress(LongtakeError):  # of another version, or damaged: not this one
            same = film_key(plan_from_json(folder.plan())) == film_key(plan)
            if same and job_state(folder, journal_records(folder)) in ("interrupted", "done"):
                return folder.id
    return None


def main() -> int:
    plan = prepare(load_spec(FILM)).plan
    begun = time.monotonic()
    job = begun_job(plan)
    command = [
        str(Path(sys.executable).parent / "longtake"),
        *(["resume", job] if job else ["render", str(FILM)]),
        "--workers", "2", "--store", str(STORE), "--out", str(OUT), "--json",
    ]  # fmt: skip
    code, printed = run(command)
    if code != 0:
        return code
    resumed, job = job is not None, json.loads(printed)["id"]
    rows = [
        Row(
            shot.render.prompt,
            shot.first_pixel_frame,
            shot.first_pixel_frame + shot.render.pixel_frames,
        )
        for shot in plan.shots
    ]
    contact_sheet(OUT, rows, SHEET)
    took = f"in {time.monotonic() - begun:.0f} s"
    if resumed:
        took = f"this time {took}, for it went on from what was stored"
    windows = [len(shot.stages[-1].windows) for shot in plan.shots]
    print(
        f"""
Rendered {plan.pixel_frames / plan.fps:.0f} s in {len(plan.shots)} shots, as {sum(windows)} \
overlapping windows ({", ".join(map(str, windows))}) on 2 workers, {took}.
  {OUT}   the film
  {SHEET}   the film at a glance

Next:
  . .venv/bin/activate
  longtake verify {job} --store {STORE}     read every frame and hash again
  longtake show {job} --store {STORE}
  longtake render --prompt "a blue star bounces on a red background" --seconds 8
  Press Ctrl-C while it renders, then `longtake ls` and `longtake resume JOB`: same bits."""
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
