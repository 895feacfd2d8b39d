"""The ways of a host to its workers, as leases and the pool of leases use them: no host's transport is known to either."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from atoll import errors
    from atoll.host.contract import Output
    from atoll.model.terminal import Terminal
    from atoll.wire.call_protocol import Frame
    from atoll.wire.frames import Header, Message


class Link(Protocol):
    """The way to one worker, and to who granted it; one thread receives, any may `tell`."""

    messages: list[Message]
    """The worker's messages that have come, in order; the lease takes them from the front."""
    drained: bool
    """True if the output before the last message has been passed on; the lease sets it to False for a later one."""

    @property
    def usable(self) -> bool:
        """True while the worker has sent nothing and is there, as far as is known here."""

    @property
    def spent(self) -> bool:
        """True if the worker is known to be gone; does not wait."""

    def send(self, header: Header, buffers: Sequence[Any] = ()) -> None:
        """Send a message to the worker; raises `ChannelClosed` where it is gone."""

    def send_many(self, messages: Sequence[Frame]) -> None:
        """Send small messages at once; raises as `send`."""

    def show(self, terminal: Terminal) -> None:
        """Have the next call see a terminal as the caller's, where there can be one."""

    def look(self, milliseconds: float | None, output: Output, call: str) -> None:
        """Take the worker's next bytes and output, or nothing when nothing comes in time.

        Args:
            call: the id of the call that is answered next.

        Raises:
            ChannelClosed: the worker will send nothing more.
            FrameError: what it sends is no message, or too large for this machine.
        """

    def drain(self, output: Output, call: str) -> None:
        """Pass on all output that has come."""

    def end_call(self) -> None:
        """Mark the end of a call's output."""

    def hear(self, seconds: float) -> dict[str, Any] | None:
        """Return the next message of who granted the worker; None where none comes in time.

        Raises:
            ChannelClosed, FrameError: there will be none.
        """

    def tell(self, header: dict[str, Any]) -> None:
        """Send a message to who granted the worker; raises `ChannelClosed` or `OSError` where it is gone."""

    @property
    def whole(self) -> bool:
        """True where all has come that the worker has sent, once it sends nothing more."""

    def lost(self) -> errors.AtollError:
        """Return the error of the call that ran when the link ended without a word about the worker."""

    def close(self) -> None:
        """Give the worker back."""

    def forget(self) -> None:
        """In a forked child: drop the parent's link, which stays the parent's."""


class Asking(Protocol):
    """A connection that asks for one thing, before or without a link; one thread receives."""

    def receive(self, milliseconds: float | None) -> dict[str, Any] | None:
        """Return the next message; None where none comes in time.

        Raises:
            ChannelClosed, FrameError: there will be none.
        """

    def withdraw(self, *, for_another: bool) -> None:
        """Take back what is asked, and end the connection; from any thread.

        Args:
            for_another: another lease serves the call.

        Raises:
            ChannelClosed, OSError: it has ended already.
        """

    def grant(self) -> Link:
        """Return the link that the last message, `granted`, has given; it takes the connection over."""

    def close(self) -> None:
        """End the connection."""
