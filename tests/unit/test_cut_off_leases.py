"""Leases whose worker gave them up: a call that has not begun is made again, unless its answer may have been cut off."""

from __future__ import annotations

from typing import Any

import pytest

from atoll import errors
from atoll.host.lease import WorkerLease
from atoll.wire.call_protocol import Revoked
from atoll.wire.channel import ChannelClosed

from .test_call_protocol import call


class Link:
    """A worker that sends nothing more, and a daemon that says that the lease was given up.

    Args:
        whole: nothing that the worker has sent was lost.
    """

    def __init__(self, whole: bool) -> None:
        self.whole = whole
        self.messages: list[Any] = []
        self.drained = True

    def send(self, *_: object) -> None:
        """Take a call."""

    def look(self, *_: object) -> None:
        """Have no answer."""
        raise ChannelClosed("over")

    def drain(self, *_: object) -> None:
        """Have no output."""

    def hear(self, _seconds: float) -> dict[str, Any]:
        """Tell that the lease was given up."""
        return {"type": "ended", "error": None}

    def lost(self) -> errors.AtollError:
        """Tell what is known of a call whose line was cut off."""
        return errors.HostUnreachable("it may have run", hint="call again")


class Output:
    """Takes no output."""

    def waits(self, *_: object) -> None:
        """Have no patience to end."""

    def tail(self) -> str:
        """Return nothing."""
        return ""


@pytest.mark.parametrize(("whole", "error"), [(True, Revoked), (False, errors.HostUnreachable)])
def test_a_call_whose_answer_may_be_lost_is_not_made_again(whole: bool, error: type[Exception]) -> None:
    """`Revoked` has a host make the call anew."""
    link: Any = Link(whole)
    output: Any = Output()
    lease = WorkerLease(link, 1, fresh=False)
    with pytest.raises(error):
        lease.run(call(), 10.0, None, output)
