"""Keeps records of calls without disturbing the calls.

The event loop only appends to a list. One thread, started with the first record, writes what has gathered every
`WRITE_SECONDS`, and answers questions. A fault of the file (locked, full disk, damaged) disturbs nobody: it is logged
once until writing works again, as many records as `MOST_RECORDS` wait for that, and a damaged file is set aside and made
anew. A question that cannot be answered fails for its asker alone. What is still in memory when the daemon is killed is
lost.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from atoll import errors
from atoll.model.records import CallRecord
from atoll.settings import RecordsSettings

if TYPE_CHECKING:
    from atoll.daemon.records.database import Database

log = logging.getLogger("atoll.records")

WRITE_SECONDS = 0.25
PRUNE_SECONDS = 60.0
REST_SECONDS = 5.0
"""Seconds until a file that cannot be written is tried again."""
CLOSE_SECONDS = 3.0
MOST_RECORDS = 50_000
MOST_OUTPUT_BYTES = 16 << 20
"""Records that may wait to be written; further ones are dropped."""

T = TypeVar("T")
Output = tuple[str, str, str, int, bytes]


class Recorder:
    """Takes records and outputs from the event loop, and answers questions about them.

    Args:
        directory: where the file is; made with the first record.
        options: how much is kept; `keep_days` 0 keeps nothing.
    """

    def __init__(self, directory: Path, options: RecordsSettings) -> None:
        self._directory = directory
        self.options = options
        self._changed = threading.Condition()
        self._records: list[CallRecord] = []
        self._outputs: dict[tuple[str, str, str], Output] = {}
        self._output_bytes = 0
        self._questions: list[tuple[Callable[[Database], Any], Future[Any]]] = []
        self._thread: threading.Thread | None = None
        self._closing = False
        self._database: Database | None = None
        self._rest_until = 0.0
        self._pruned = 0.0
        self._told = False

    def add(self, record: CallRecord) -> None:
        """Keep a record; from any thread, without waiting."""
        if not self.options.keep_days:
            return
        with self._changed:
            first = not self._records and not self._outputs
            if len(self._records) < MOST_RECORDS:
                self._records.append(record)
            if first:  # the thread waits for the others by the clock: waking it for each would cost more than writing
                self._wake()

    def add_output(self, output: Output) -> None:
        """Keep a call's output; a later one of the same call, user and worker replaces it."""
        if not self.options.keep_days:
            return
        call, user, worker, _, tail = output
        with self._changed:
            first = not self._records and not self._outputs
            old = self._outputs.pop((call, user, worker), None)
            self._output_bytes -= len(old[4]) if old is not None else 0
            if self._output_bytes + len(tail) <= MOST_OUTPUT_BYTES:
                self._outputs[call, user, worker] = output
                self._output_bytes += len(tail)
            if first:
                self._wake()

    def ask(self, question: Callable[[Database], T]) -> Future[T]:
        """Ask the database, past all that was added before.

        The future fails with `StateUnusable` when the records cannot be read.
        """
        future: Future[T] = Future()
        with self._changed:
            if self._closing:
                future.set_exception(_unreadable("the daemon is ending"))
                return future
            self._questions.append((question, future))
            self._wake()
        return future

    def close(self) -> None:
        """Write the waiting records, and stop; waits for `CLOSE_SECONDS` at most."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="records", daemon=True)
            self._thread.start()
        else:
            self._changed.notify()

    # --- in the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._records or self._outputs or self._questions or self._closing):
                    self._changed.wait()
                if not (self._questions or self._closing):
                    self._changed.wait_for(lambda: self._questions or self._closing, WRITE_SECONDS)
                records, self._records = self._records, []
                outputs, self._outputs, self._output_bytes = self._outputs, {}, 0
                questions, self._questions = self._questions, []
                closing = self._closing
            if questions:
                self._rest_until = 0.0  # somebody waits for the answers: try now
            if (records or outputs) and self._attempt(
                partial(self._write, records, list(outputs.values()))
            ) is not None:
                self._keep(records, outputs)
            for question, future in questions:
                self._answer(question, future)
            if closing:
                if self._database is not None:
                    self._database.close()
                return

    def _keep(self, records: list[CallRecord], outputs: dict[tuple[str, str, str], Output]) -> None:
        """Have what could not be written wait for the next trial, as much as may wait."""
        with self._changed:
            self._records = [*records, *self._records][:MOST_RECORDS]
            for name, output in outputs.items():
                if name not in self._outputs and self._output_bytes + len(output[4]) <= MOST_OUTPUT_BYTES:
                    self._outputs[name] = output
                    self._output_bytes += len(output[4])

    def _write(self, records: list[CallRecord], outputs: list[Output], database: Database) -> None:
        from atoll.daemon.records.database import is_of_the_file

        try:
            database.write(records, outputs)
        except Exception as error:
            if is_of_the_file(error):
                raise
            log.warning("record_refused error=%r", error)  # one of them: the others of all users are kept
            for part in [*(([one], []) for one in records), *(([], [one]) for one in outputs)]:
                try:
                    database.write(*part)
                except Exception as single:
                    if is_of_the_file(single):
                        raise
        now = time.time()
        if not 0 <= now - self._pruned < PRUNE_SECONDS or database.used_bytes() > self.options.max_bytes:
            self._pruned = now
            database.prune(now - self.options.keep_days * 86400, self.options.max_bytes)

    def _answer(self, question: Callable[[Database], Any], future: Future[Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        failed = self._attempt(partial(_asked, question, future))
        if failed is not None and not future.done():
            future.set_exception(failed)

    def _attempt(self, work: Callable[[Database], None]) -> errors.AtollError | None:
        """Do something with the database; return why it cannot be done."""
        from atoll.daemon.records import database

        if time.monotonic() < self._rest_until:
            return _unreadable("it could not be opened a moment ago")
        failure: BaseException | None = None
        for _ in range(2):
            try:
                if self._database is None:
                    self._database = database.Database(self._directory)
                work(self._database)
            except Exception as error:
                failure = error
                self._drop()
                if not database.is_damaged(error):
                    break
                log.warning("records_set_aside file=%s error=%r", self._directory / database.DAMAGED, error)
                try:
                    database.set_aside(self._directory)
                except OSError:
                    break
            else:
                self._told = False
                return None
        if not self._told:
            self._told = True
            log.warning("records_not_kept error=%r", failure)
        self._rest_until = time.monotonic() + REST_SECONDS
        return _unreadable(repr(failure))

    def _drop(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            try:
                database.close()
            except Exception as error:
                log.debug("records_close error=%r", error)


def _asked(question: Callable[[Database], Any], future: Future[Any], database: Database) -> None:
    """Ask; a failure that is not the file's goes to the asker."""
    from atoll.daemon.records.database import is_of_the_file

    try:
        future.set_result(question(database))
    except Exception as error:
        if is_of_the_file(error):
            raise
        future.set_exception(error)


def _unreadable(reason: str) -> errors.StateUnusable:
    return errors.StateUnusable(f"the records of calls cannot be read: {reason}", hint="see `atoll logs`")
