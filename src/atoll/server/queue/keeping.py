"""The keeping of answers: by age, and by the bytes of all."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import MutableMapping
from functools import partial
from typing import Any

from atoll import errors
from atoll.model.options.queue import QueueSettings
from atoll.server.database.database import Database
from atoll.server.queue import rows
from atoll.server.queue.files import Files
from atoll.server.queue.writer import Writer

LOOK_SECONDS = 60.0
FILES_LOOKS = 60
"""Looks after which files without a request are looked for."""
SHARE = 0.5
"""The most of all bytes that the requests to one owner's endpoints take: nobody fills the queue alone."""
STRAY_SECONDS = 3600.0
"""Seconds without a change of a file that nobody needs: others are just written, and have no row yet."""
log = logging.getLogger("atoll.queue")


class Keeping:
    """Removes answers that are old, or too many.

    Args:
        recent: what is remembered of requests by their ids; removed ones are forgotten.
    """

    def __init__(
        self, database: Database, writer: Writer, files: Files, options: QueueSettings, recent: MutableMapping[str, Any]
    ) -> None:
        self._database, self._writer, self._files = database, writer, files
        self._options, self._recent = options, recent
        self._stored: Counter[str] = Counter()

    def changed(self, owner: str, size: int) -> None:
        """Note bytes that have come or gone for an owner's endpoints."""
        self._stored[owner] += size

    async def reserve(self, owner: str, size: int) -> None:
        """Take room for a request to an owner's endpoint; old answers go for it, the owner's own before others'.

        Raises:
            QuotaExceeded: requests that are not over take all of it, or the owner's share.
        """
        most = self._options.max_bytes
        for one, bound in ((owner, int(most * SHARE)), ("", most)):
            if self._used(one) + size > bound:
                await self._expire(one, bound - size)
                if self._used(one) + size > bound:
                    raise errors.QuotaExceeded(
                        f"the queue has no room: it keeps at most {bound:,} bytes of {'one owner' if one else 'all'}",
                        hint="try again when requests are over",
                    )
        self._stored[owner] += size

    def _used(self, owner: str) -> int:
        return self._stored[owner] if owner else self._stored.total()

    async def _expire(self, owner: str, most: int) -> None:
        before = time.time() - self._options.keep_days * 86_400
        while True:
            excess = self._used(owner) - most
            gone = await self._writer.do(partial(rows.expire, before=before, excess=excess, owner=owner))
            if not gone:
                return
            for one, its, size in gone:
                self._stored[its] -= size
                self._recent.pop(one, None)
            await self._files.remove([one for one, _, _ in gone])
            log.info("answers_expired", extra={"fields": {"requests": len(gone)}})

    async def look(self) -> None:
        """Look again and again."""
        self._stored = Counter(await self._database.run(rows.stored, writes=False))
        looks = 0
        while True:
            await self._expire("", self._options.max_bytes)
            if looks % FILES_LOOKS == 0:
                await self._remove_strays()
            looks += 1
            await asyncio.sleep(LOOK_SECONDS)

    async def _remove_strays(self) -> None:
        """Remove files whose request there is not: it was removed with its owner, or never came to the database."""
        seen = await self._files.names(STRAY_SECONDS)
        known = await self._database.run(partial(rows.known_ids, ids=list(seen)), writes=False)
        await self._files.remove(set(seen) - known - set(self._recent))
