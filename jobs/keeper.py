"""The store keeper: writes results beside the store, so that workers need no access to it.

A plain class; the driver makes it an actor on the store's host. Every error that it raises is
picklable, with its message.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from jobs.arrays import Bundle, decode_bundle, encode_bundle
from jobs.errors import StoreError
from jobs.results import ResultRecord, Results
from jobs.store import Store


class StoreKeeper:
    """Reads and writes the results of one store. Any number of keepers may serve a store."""

    def __init__(self, store_uri: str) -> None:
        self._results = Results(Store.open(store_uri, create=False))

    def store_bundle(
        self, recipe: str, bundle: Bundle, kind: str, numerics: str, writer: str
    ) -> ResultRecord:
        """Store arrays; returns once they are durable. Raises StoreError, StoreFull."""
        data = encode_bundle(bundle)
        return self._results.commit(
            recipe, data, kind=kind, numerics=numerics, writer=writer, ext="arrow"
        )

    def store_bytes(
        self,
        recipe: str,
        data: bytes,
        kind: str,
        numerics: str,
        writer: str,
        extra: Mapping[str, Any] | None = None,
        ext: str = "bin",
    ) -> ResultRecord:
        """Store bytes; returns once they are durable. Raises StoreError, StoreFull."""
        return self._results.commit(
            recipe, data, kind=kind, numerics=numerics, writer=writer, extra=extra, ext=ext
        )

    def take_disagreements(self) -> list[str]:
        """Results that came a second time with other bits, since this was last asked."""
        taken, self._results.disagreements = self._results.disagreements, []
        return taken

    def load_bundle(self, recipe: str) -> Bundle:
        """The arrays of a result. Raises DamagedRecord, and StoreError if there is none."""
        return decode_bundle(self._results.read(recipe))

    def load_bytes(self, recipe: str) -> bytes:
        """The bytes of a result. Raises DamagedRecord, and StoreError if there is none."""
        return self._results.read(recipe)

    def path(self, recipe: str) -> Path:
        """The data file of a result. Raises like ``load_bytes``."""
        return self._results.path(recipe)

    def set_aside(self, recipe: str, *, force: bool = False) -> None:
        """Move a damaged result away, so that it can be computed again; ``force``: any result."""
        self._results.quarantine(recipe, force=force)

    def damaged(self, recipes: Iterable[str]) -> list[str]:
        """Those of the results that are missing or not what was written; they are set aside."""
        bad = []
        for recipe in recipes:
            try:
                self._results.read(recipe)
            except StoreError:
                with suppress(StoreError):  # what cannot be moved is written over
                    self.set_aside(recipe)
                bad.append(recipe)
        return bad

    def delete(self, recipes: Iterable[str]) -> None:
        """Delete results that nothing needs any more."""
        for recipe in recipes:
            self._results.delete(recipe)
