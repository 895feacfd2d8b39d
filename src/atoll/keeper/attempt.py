"""One attempt of a detached call: from its row and its spool to its outcome, with a file for the answer."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from atoll import errors
from atoll.detached.rows import Row
from atoll.detached.store import LOST, Store
from atoll.host.contract import Ticket
from atoll.host.local import LocalHost
from atoll.keeper.answer import Answer
from atoll.keeper.output import KeptOutput
from atoll.keeper.spools import Spools
from atoll.model.records import outcome_of
from atoll.settings import DetachedSettings
from atoll.wire.frames import Message

PAUSE_SECONDS = 2.0
"""Between two trials to write to a disk that takes nothing."""
MOST_TEXT = 2000


class Made(NamedTuple):
    """The end of an attempt.

    Args:
        outcome: one of `model.records.OUTCOMES`; empty where the call has not been sent and waits on.
        error: as the row keeps it.
        kinds: the types of the error, its own and those above it, as module and name.
        is_loss: the worker was lost, which `retries` make good for always.
        answered: there is an answer, the items of a generator before it.
    """

    outcome: str
    error: dict[str, Any] | None = None
    kinds: tuple[tuple[str, str], ...] = ()
    is_loss: bool = False
    answered: bool = False


class Attempt:
    """One attempt of a call, made by a thread of its own.

    Args:
        tell: takes a row that has changed, with the state and the line of its wait.
    """

    def __init__(
        self,
        row: Row,
        store: Store,
        spools: Spools,
        host: LocalHost,
        options: DetachedSettings,
        tell: Callable[[Row, str, str], None],
    ) -> None:
        self.row = row
        self._spools = spools
        self._store = store
        self._host = host
        self._options = options
        self._tell = partial(tell, row)
        self._unwritable = False
        self._answer = Answer(store.files.directory, options.call_bytes)
        self.ticket = Ticket(self._begin, call_id=row.call, made_at=row.queued_at)
        self.began = False
        self.held_bytes = 0
        """The size of its arguments."""
        self.outcome = ""
        """Set once it is on the disk."""
        self.given_up = threading.Event()
        """Set when the daemon ends: an error of the call is then the loss of its worker."""
        self._withdrawn = False
        self._beginning = threading.Lock()

    def withdraw(self) -> bool:
        """Leave the call to another keeper, unless it has begun; return whether it has not."""
        with self._beginning:
            self._withdrawn = not self.began
            return self._withdrawn

    def run(self) -> bool:
        """Make the call and commit its outcome; return whether it is over."""
        output = KeptOutput(self._store.files.path("outputs", self.row.call), self._options.output_bytes, self._tell)
        try:
            try:
                made = self._make(output)
            finally:
                output_bytes = output.close()
            return self._commit(made, output_bytes)
        finally:
            self._answer.close()

    def _begin(self) -> bool:
        with self._beginning:
            if self._withdrawn:
                return False
            try:
                self.began = self._store.begin(self.row.call, self.row.revision)
            except errors.AtollError:
                self._unwritable = True
                raise
        if self.began:
            self._tell("running", "")
        return self.began

    def _make(self, output: KeptOutput) -> Made:
        try:
            call, spec, bundle = self._spools.call(self.row)
        except Exception as error:  # of a damaged row or file, which is not to be tried again and again
            return self._failed(
                errors.StateUnusable(
                    f"the detached call of `{self.row.function}` cannot be read: {error}",
                    hint="its file was damaged or removed: make the call again",
                )
            )
        try:
            if call.stream:
                messages: Any = self._host.stream(spec, call, bundle, output, self.ticket)
                with contextlib.closing(messages):
                    for last in messages:
                        self._answer.add(last)
            else:
                last = self._host.run(spec, call, bundle, output, self.ticket)
                self._answer.add(last)
        except (errors.DetachedFull, errors.DiskFull) as error:  # of the answer: the function has run
            if self.began:
                return Made("error", error.to_data())
            return self._failed(error)
        except errors.AtollError as error:
            return self._failed(error)
        except Exception as error:
            return self._failed(errors.InternalError(f"the keeper failed: {error!r}", hint="see `atoll logs`"))
        if last.type != "error":
            return Made("ok", answered=True)
        if self.given_up.is_set():
            return Made("lost", LOST.to_data(), is_loss=True)
        described, kinds = _described(last)
        self._answer.close()
        self._answer = Answer(self._store.files.directory, self._options.call_bytes)
        self._answer.add(last)  # without the items before it
        return Made("error", described, kinds, answered=True)

    def _failed(self, error: errors.AtollError) -> Made:
        """Return the end of an attempt that Atoll itself has ended."""
        cancelled = isinstance(error, errors.CallCancelled)
        if not self.began:
            if self._unwritable or self._withdrawn or isinstance(error, errors.HostUnreachable):
                return Made("")
            return Made("cancelled" if cancelled else "refused", error.to_data())
        if self.given_up.is_set() and not self.ticket.cancelled:
            return Made("lost", LOST.to_data(), is_loss=True)
        kinds = tuple((one.__module__, one.__qualname__) for one in type(error).__mro__)
        loss = isinstance(error, (errors.WorkerDied, errors.HostUnreachable))
        is_loss = loss and not isinstance(error, errors.OutOfMemory)
        return Made(outcome_of(error, "lost"), error.to_data(), kinds, is_loss)

    # --- the commit -------------------------------------------------------------------------------------------------

    def _commit(self, made: Made, output_bytes: int) -> bool:
        """Write the answer and the outcome, as soon as the disk takes them; return whether the call is over."""
        if not made.outcome:
            return False
        while True:
            try:
                return self._commit_once(made, output_bytes)
            except errors.AtollError as error:  # the outcome stays in memory until it is on the disk
                self._tell("running", f"its outcome cannot be written: {error.message}")
                time.sleep(PAUSE_SECONDS)

    def _commit_once(self, made: Made, output_bytes: int) -> bool:
        row = self.row
        if self.began and made.outcome != "ok" and not self.ticket.cancelled and self._is_retried(made):
            self._store.again(row.call, time.time() + row.rule.wait(row.attempts))
            return False
        outcome, error, size = made.outcome, made.error, 0
        if made.answered:
            try:
                size = self._write()
            except errors.AtollError as refused:
                outcome, error = "error", refused.to_data()
        revision = None if self.began else row.revision
        self._store.end(row.call, outcome, error, size, output_bytes, waiting=revision)
        self.outcome = outcome
        return True

    def _is_retried(self, made: Made) -> bool:
        try:
            rule = self.row.rule
        except ValueError:
            return False
        return self.row.attempts < rule.count and (made.is_loss or rule.names(made.kinds))

    def _write(self) -> int:
        self._store.check_room(self._answer.size_bytes)
        return self._store.write_result(self.row.call, self._answer.fill)


def _described(message: Message) -> tuple[dict[str, Any], tuple[tuple[str, str], ...]]:
    """Return type and text of a function's exception, and the names of its types; a worker may say anything."""
    try:
        node = message.header["error"]["exceptions"][0]
        kinds = tuple((str(base[0]), str(base[1])) for base in node.get("bases", ())[:50])
        return {"type": str(node["type"])[:200], "text": str(node["text"])[:MOST_TEXT]}, kinds
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        return {"type": "", "text": "the exception is described wrongly"}, ()
