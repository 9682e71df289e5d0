"""Plain classes made Ray actors, in one place.

Our packages have common names (``jobs``, ``workers``), and Ray puts the driver's folder first in
its workers' path, so a stranger's package of the same name could be found instead of ours. The
shells below are therefore local classes: Ray sends them by value, and they put our own folder
first before anything of ours is imported or unpickled.

No exception crosses the border: a shell returns what happened as plain data.
"""

from __future__ import annotations

from typing import Any


def worker_shell() -> type:
    """The actor around ``workers.worker.Worker``."""

    class LongtakeWorker:
        def __init__(self, root: str) -> None:
            import sys

            sys.path.insert(0, root)
            self.worker: Any = None

        def join(self, setup: Any, identity: str) -> tuple[str, Any]:
            """Load the model; ("joined", profile), ("refused", why) or ("failed", why)."""
            from jobs.errors import LongtakeError

            try:
                from workers.joining import join, load

                self.worker = join(setup, identity)
                return "joined", load(self.worker)
            except LongtakeError as error:
                return "refused", str(error)
            except Exception as error:
                return "failed", f"{type(error).__name__}: {error}"

        def run(self, task: Any, memory: Any, may_stay: bool, *inputs: Any) -> tuple[Any, Any, Any]:
            """Compute a unit; (("finished", report), output, memory) or (("failed", kind, why),
            None, None). ``memory`` is what only the same tile's next step reads: a bundle, or its
            name on this worker's shelf, where it may stay, or None."""
            from jobs.errors import UnitError
            from jobs.units import Stayed
            from workers.carrying import apart, with_memory

            stayed = memory if isinstance(memory, Stayed) else None
            try:
                joined = with_memory(task, inputs, None if stayed else memory)
                report, output = self.worker.run(task, joined, stayed=stayed, may_stay=may_stay)
                return ("finished", report), *apart(output)
            except UnitError as error:
                return ("failed", error.kind, error.message), None, None

        def hand_over(self, stayed: Any) -> tuple[None, Any]:
            """(None, what is on the shelf, for another worker); its name again if it is not there,
            or there is no memory for a copy: then the tile goes back."""
            from jobs.faults import fault_point

            fault_point("worker.before_hand_over", str(stayed.unit))
            try:
                return None, self.worker.shelf.hand_over(stayed) or stayed
            except Exception:
                return None, stayed

        def drop(self, stayed: Any) -> None:
            self.worker.shelf.drop(stayed)

    return LongtakeWorker


def keeper_shell() -> type:
    """The actor around ``jobs.keeper.StoreKeeper``, on the store's host."""

    class LongtakeKeeper:
        def __init__(self, root: str, store_uri: str) -> None:
            import sys

            sys.path.insert(0, root)
            from jobs.keeper import StoreKeeper

            self.keeper = StoreKeeper(store_uri)

        def process(self) -> int:
            import os

            return os.getpid()

        def store(
            self, recipe: str, kind: str, numerics: str, writer: str, pinned: bool,
            output: Any, memory: Any = None,
        ) -> tuple[str, Any]:  # fmt: skip
            """("stored", (record, warnings)) or ("refused", message)."""
            from jobs.errors import StoreError
            from workers.carrying import together

            output = together(output, memory)
            try:
                record = self._commit(recipe, kind, numerics, writer, output)
                if pinned and record.numerics != numerics:
                    self.keeper.set_aside(recipe, force=True)
                    record = self._commit(recipe, kind, numerics, writer, output)
                return "stored", (record, self.keeper.take_disagreements())
            except StoreError as error:
                return "refused", str(error)

        def _commit(self, recipe: str, kind: str, numerics: str, writer: str, output: Any) -> Any:
            if kind != "decode":
                return self.keeper.store_bundle(recipe, output, kind, numerics, writer)
            data = output.arrays["segment"].tobytes()
            ext = "mkv" if output.meta["codec"] == "ffv1" else "mp4"
            return self.keeper.store_bytes(recipe, data, kind, numerics, writer, output.meta, ext)

        def load(self, recipe: str) -> tuple[tuple[str, Any], Any, Any]:
            """(("loaded", remembers), output, memory) or (("damaged", message), None, None)."""
            import contextlib

            from jobs.errors import StoreError
            from workers.carrying import apart, remembers

            try:
                output = self.keeper.load_bundle(recipe)
                return ("loaded", remembers(output)), *apart(output)
            except StoreError as error:
                with contextlib.suppress(StoreError):  # what cannot be moved is computed anew
                    self.keeper.set_aside(recipe)
                return ("damaged", str(error)), None, None

        def delete(self, recipes: list[str]) -> None:
            self.keeper.delete(recipes)

        def stitch(
            self, recipes: list[str], out: str, fps: int, codec: str, metadata: dict[str, Any]
        ) -> tuple[str, Any]:
            """("stitched", (sha256, kept)), ("damaged", recipes) or ("failed", message)."""
            from pathlib import Path

            from jobs.errors import LongtakeError
            from workers.video import SegmentsDiffer, stitch

            bad = self.keeper.damaged(recipes)
            if bad:
                return "damaged", bad
            try:
                paths = [self.keeper.path(recipe) for recipe in recipes]
                facts = stitch(paths, Path(out), fps=fps, codec=codec, metadata=metadata)
                return "stitched", (facts.sha256, facts.kept)
            except SegmentsDiffer:  # as after an upgrade: all are encoded anew, from their latents
                for recipe in recipes:
                    self.keeper.set_aside(recipe, force=True)
                return "damaged", recipes
            except LongtakeError as error:
                return "failed", str(error)
            except OSError as error:
                return "failed", f"{out}: {error}"

    return LongtakeKeeper
