"""The spools that the keeper reads from: the calls of a batch share one, whose header and function are read once."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import NamedTuple

from atoll.detached.files import Files, reading
from atoll.detached.rows import Row
from atoll.host import index_settings
from atoll.host.contract import Bundle
from atoll.model.specs import Call, LeaseSpec
from atoll.model.spool import Spool, StoredNames, modules_digest
from atoll.model.stored_call import StoredBundle, StoredCall

KEPT = 8


class _Loaded(NamedTuple):
    spool: Spool
    template: StoredCall
    names: StoredNames

    @property
    def bundle(self) -> str:
        """The digest of its modules; empty for none."""
        return self.spool.modules_digest


class Spools:
    """Reads calls; keeps the last spools. Safe to use from several threads."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._kept: dict[str, _Loaded] = {}
        self._bundles: dict[str, StoredBundle] = {}

    def call(self, row: Row) -> tuple[Call, LeaseSpec, Bundle | None]:
        """Return a call with its spec and the project's modules.

        Raises:
            ValueError, OSError: its file is damaged, or not there.
        """
        own = self._load(row.spool)
        like = self._load(row.template) if row.template else own
        with reading(self._files.path("spools", row.spool)) as file:
            call = own.spool.call(file, row.place, like.template)
        if call.id != row.call:
            raise ValueError("the spool has another call in its place")
        names = like.names if call.results == "pickle" else None
        bundle = self._bundle(like.bundle) if like.bundle else like.template.bundle
        return replace(call, streams="one", names=names), like.template.spec, bundle

    def size(self, row: Row) -> int:
        """Return the size of a call's arguments; 0 where the file is damaged or not there."""
        try:
            return sum(self._load(row.spool).spool.calls[row.place].sizes)
        except Exception:  # a damaged row or file, as the attempt finds too
            return 0

    def _bundle(self, digest: str) -> StoredBundle:
        with self._lock:
            found = self._bundles.pop(digest, None)
            if found is None:
                with reading(self._files.path("bundles", digest)) as file:
                    data = file.read()
                if modules_digest([data]) != digest:
                    raise ValueError("the file of its modules is damaged")
                found = StoredBundle.from_bytes(data)
            self._bundles[digest] = found
            if len(self._bundles) > KEPT:
                del self._bundles[next(iter(self._bundles))]
            return found

    def _load(self, name: str) -> _Loaded:
        with self._lock:
            found = self._kept.pop(name, None)
            if found is None:
                with reading(self._files.path("spools", name)) as file:
                    spool = Spool.from_file(file)
                    found = _Loaded(spool, spool.template(file), spool.names(file))
                    certificates = spool.certificates(file)
                if certificates:
                    index_settings.learn(certificates)
            self._kept[name] = found
            if len(self._kept) > KEPT:
                del self._kept[next(iter(self._kept))]
            return found
