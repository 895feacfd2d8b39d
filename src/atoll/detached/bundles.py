"""The project's modules of detached calls: a file for each digest, once for all calls that have the same.

Rows are the references. A row that names a file is added only inside a transaction in which the file is there, and a
file is removed only inside one in which no row names it. So daemon and keeper, which both do so, need no other lock.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple

from atoll import errors
from atoll.detached.database import Database

ATTEMPTS = 20
"""Writes of a file that others remove again and again, before the calls are refused."""


class Bundle(NamedTuple):
    """Modules that come with calls; `fill` writes their file."""

    digest: str
    size_bytes: int
    fill: Callable[[BinaryIO], None]


class Bundles(Database):
    """Rows, and the files with modules that they name."""

    def missing_bytes(self, bundle: Bundle | None) -> int:
        """Return how much a bundle adds on the disk: nothing where it is there."""
        return 0 if bundle is None or self._is_there(bundle.digest) else bundle.size_bytes

    def _is_there(self, digest: str) -> bool:
        return self.files.path("bundles", digest).is_file()

    @contextlib.contextmanager
    def with_bundle(self, bundle: Bundle | None) -> Iterator[sqlite3.Connection]:
        """Open a transaction for rows that name a bundle, whose file is there."""
        for _ in range(ATTEMPTS):
            if bundle is not None and not self._is_there(bundle.digest):
                with self.translated():
                    self.files.write("bundles", bundle.digest, bundle.fill)
            with self.transaction() as connection:
                if bundle is None or self._is_there(bundle.digest):
                    yield connection
                    return
        raise errors.StateUnusable(
            f"files below `{self.files.directory}` are removed by another program", hint="end it, and try again"
        )

    def release(self, digests: Iterable[str]) -> None:
        """Remove the files of these digests that no row names any more."""
        for digest in {one for one in digests if one}:
            if self.rows("WHERE bundle = ? LIMIT 1", (digest,)):
                continue
            with self.transaction() as connection:
                if connection.execute("SELECT 1 FROM calls WHERE bundle = ? LIMIT 1", (digest,)).fetchone() is None:
                    self.files.remove("bundles", digest)

    def remove_stray_bundles(self) -> None:
        """Remove old files that no row names: their process was killed between two steps."""
        with self.transaction() as connection:
            known = [row[0] for row in connection.execute("SELECT DISTINCT bundle FROM calls WHERE bundle != ''")]
            self.files.remove_strays("bundles", known)
