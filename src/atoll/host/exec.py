"""A command in the sandbox of a running call, through the daemon."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from atoll import errors
from atoll.host import daemon_start
from atoll.settings import Settings
from atoll.wire.channel import ChannelClosed


def execute(
    options: Settings,
    call: str,
    command: Sequence[str],
    descriptors: tuple[int, int, int],
    *,
    terminal: bool,
    on_start: Callable[[], None],
) -> int:
    """Run a command, or a shell if it has no words, in the sandbox of a running call; return its exit status.

    Args:
        call: its id, or the beginning.
        descriptors: its stdin, stdout and stderr.
        on_start: called when it begins.

    Raises:
        ResourcesUnavailable: no such call runs, or its sandbox has ended.
        HostUnreachable: the daemon does not answer.
    """
    message = {"type": "exec", "call": call, "command": list(command), "terminal": terminal}
    control = daemon_start.open_connection(options, message, descriptors)
    try:
        while True:
            header = control.receive().header
            match header.get("type"):
                case "granted":
                    on_start()
                case "answer":
                    return int(header["value"]["status"])
                case "failed":
                    raise errors.from_data(header.get("error") or {})
    except ChannelClosed as error:
        raise errors.HostUnreachable("the daemon ended, and the sandbox with it", hint="call again") from error
    finally:
        control.close()
