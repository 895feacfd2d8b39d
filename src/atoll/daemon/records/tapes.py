"""Reader of clients' output tapes (`wire.output_tape`), for the records."""

from __future__ import annotations

import asyncio
import logging

from atoll.daemon.records.recorder import Recorder
from atoll.engine.contract import EngineLease
from atoll.wire.output_tape import TapeReader

log = logging.getLogger("atoll.records")

LOOK_SECONDS = 0.5


class Outputs:
    """The tapes of the leases that are held now.

    A tape counts for the worker of its lease only: a lease's holder cannot write into another one's log.

    Args:
        recorder: gets their contents.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._tapes: dict[str, tuple[TapeReader, str, str]] = {}

    def open(self, lease: EngineLease, user: str, descriptor: int) -> None:
        """Take a lease's tape; a second one of the same lease, or a descriptor that is no tape, is closed.

        Raises:
            ValueError: it is no tape.
        """
        tape = TapeReader(descriptor)
        if lease.id in self._tapes:
            tape.close()
            return
        self._tapes[lease.id] = tape, user, lease.worker

    def close(self, lease: EngineLease) -> None:
        """Take the rest of a lease's tape: its client has left."""
        known = self._tapes.pop(lease.id, None)
        if known is not None:
            self._look(*known)
            known[0].close()

    async def look(self) -> None:
        """Take new output from all tapes, one at a time, so that many of them delay nobody."""
        for name in list(self._tapes):
            known = self._tapes.get(name)
            if known is not None:
                self._look(*known)
                await asyncio.sleep(0)

    def _look(self, tape: TapeReader, user: str, worker: str) -> None:
        try:
            for printed in tape.read():
                if printed.call:
                    name = printed.call.replace("\0", "")
                    self._recorder.add_output((name, user, worker, printed.printed_bytes, printed.tail))
        except OSError as error:
            log.warning("tape_unreadable worker=%s error=%s", worker, error)

    async def watch(self) -> None:
        """Look from time to time; runs until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()
