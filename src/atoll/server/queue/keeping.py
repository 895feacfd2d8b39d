"""How long answers are kept: by age, and by the bytes of all."""

from __future__ import annotations

import asyncio
import logging
import time
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
        self._stored = 0

    def changed(self, size: int) -> None:
        """Note bytes that have come or gone."""
        self._stored += size

    async def reserve(self, size: int) -> None:
        """Take room for a request; old answers go for it.

        Raises:
            QuotaExceeded: requests that are not over take all of it.
        """
        most = self._options.max_bytes
        if self._stored + size > most:
            await self._expire(size)
            if self._stored + size > most:
                raise errors.QuotaExceeded(
                    f"the queue has no room: it keeps at most {most:,} bytes", hint="try again when requests are over"
                )
        self._stored += size

    async def _expire(self, more: int = 0) -> None:
        before = time.time() - self._options.keep_days * 86_400
        while True:
            excess = self._stored + more - self._options.max_bytes
            gone, free = await self._writer.do(partial(rows.expire, before=before, excess=excess))
            if not gone:
                return
            self._stored -= free
            for one in gone:
                self._recent.pop(one, None)
            await self._files.remove(gone)
            log.info("answers_expired", extra={"fields": {"requests": len(gone), "bytes": free}})

    async def look(self) -> None:
        """Look again and again."""
        self._stored = await self._database.run(rows.stored, writes=False)
        looks = 0
        while True:
            await self._expire()
            if looks % FILES_LOOKS == 0:
                await self._remove_strays()
            looks += 1
            await asyncio.sleep(LOOK_SECONDS)

    async def _remove_strays(self) -> None:
        """Remove files whose request there is not: it was removed with its owner, or never came to the database."""
        seen = await self._files.names(STRAY_SECONDS)
        known = await self._database.run(partial(rows.known_ids, ids=list(seen)), writes=False)
        await self._files.remove(set(seen) - known - set(self._recent))
