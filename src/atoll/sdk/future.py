"""The future of a submitted call, which can be cancelled until the call is sent to a worker."""

from __future__ import annotations

import time
from concurrent.futures import Future
from typing import TypeVar

from atoll.host.contract import Ticket
from atoll.sdk import identity

R = TypeVar("R")


class CallFuture(Future[R]):
    """Pending until the call is sent to a worker, running from then on."""

    def __init__(self) -> None:
        super().__init__()
        self._told = False
        self.ticket = Ticket(self._start, call_id=identity.new_id(), made_at=time.time())

    @property
    def call_id(self) -> str:
        """The call's id: what `atoll calls show` and `atoll logs` know it by."""
        return self.ticket.call_id

    def _start(self) -> bool:
        started = self.set_running_or_notify_cancel()
        self._told = not started
        return started

    def cancel(self) -> bool:
        """Cancel the call if it has not been sent yet; return whether it is cancelled."""
        cancelled = super().cancel()
        if cancelled:
            self.ticket.cancel()
        return cancelled

    def tell_cancelled(self) -> None:
        """Tell those who wait for several futures that this one was cancelled."""
        if self.cancelled() and not self._told:
            self._told = True
            self.set_running_or_notify_cancel()
