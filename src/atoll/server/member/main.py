"""The member's process: one for a state directory, in front of its daemon; it listens nowhere."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from atoll import errors, settings
from atoll.daemon.request_arguments import MOST_DIGITS
from atoll.host import daemon_start
from atoll.sandbox.limits import descriptors
from atoll.server import logs
from atoll.server.line import DESCRIPTOR_SHARE
from atoll.server.member import joined
from atoll.server.member.dialling import Address
from atoll.server.member.member import Member
from atoll.server.node import Node
from atoll.server.process import systemd
from atoll.server.process.loop import loop_factory


def run(home: Path | None, tell: Callable[[str], None]) -> int:
    """Serve a server that this machine has joined, until told to end; return the exit status.

    Args:
        home: the state directory; None for the default one.
        tell: takes lines for who started it.

    Raises:
        StateUnusable, StateUntrusted, DiskFull: the state directory cannot be used, has no credentials, or is in use.
        NotAuthorized: the server does not know this machine any more.
    """
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would have keys and secrets in it
    sys.set_int_max_str_digits(MOST_DIGITS)
    logs.set_up()
    descriptors.raise_own()
    options = settings.load(home)
    daemon_start.prepare_home(options)
    found = joined.read(options.home)
    if found is None:
        raise errors.StateUnusable(f"`{options.home}` has joined no server", hint=joined.JOIN_HINT)
    address = Address(found.url, found.authorization, found.ca_file)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        gc.freeze()  # the modules stay: no collection looks at them again
        runner.run(_serve(options, address, found.name, found.labels, tell))
    return 0


async def _serve(
    options: settings.Settings, address: Address, name: str, labels: Mapping[str, str], tell: Callable[[str], None]
) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // DESCRIPTOR_SHARE

    def ready(line: str) -> None:
        systemd.tell("READY=1")
        tell(line)

    await Member(Node(options), address, name, labels, most, ready).run(stop)
    systemd.tell("STOPPING=1")
