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
from atoll.model.spool import Spool, StoredNames
from atoll.model.stored_call import StoredCall

KEPT = 8


class _Loaded(NamedTuple):
    spool: Spool
    template: StoredCall
    names: StoredNames


class Spools:
    """Reads calls; keeps the last spools. Safe to use from several threads."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._kept: dict[str, _Loaded] = {}

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
        return replace(call, streams="one", names=names), like.template.spec, like.template.bundle

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
