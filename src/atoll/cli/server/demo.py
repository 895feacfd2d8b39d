"""`atoll server --demo`: a server on loopback with one user, for as long as some programs run, or until interrupted."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from atoll import credentials, errors, process, settings
from atoll.cli.server import machine_packages
from atoll.cli.terminal import echo
from atoll.server.accounts import bodies
from atoll.server.accounts.direct import Direct
from atoll.settings import Settings

USER = "demo"
SETTINGS = '[users]\nshare_network = true\n[webhooks]\nallowed_networks = ["127.0.0.0/8"]\n'
"""The one user is who calls, so functions have this machine's network as on `local`: no `pasta` is needed. For the same
reason programs of this machine may be told of answers."""
START_SECONDS = 60.0
END_SECONDS = 30.0
_POLL_SECONDS = 0.05
_PROGRAM = "import sys; from atoll.cli.main import main; sys.exit(main())"


def demo(programs: Sequence[Path]) -> int:
    """Run programs whose default server is a new one, each after the other; return the first status that is not 0.

    Args:
        programs: of none, serve until interrupted.

    Raises:
        HostUnreachable: the server does not start.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_ended_in_order())
        home = Path(tempfile.mkdtemp(prefix="atoll-demo-", dir="/tmp"))
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        packages = machine_packages.read(home)
        own_index = f"[environments]\n{packages.options}" if packages.options else ""
        (home / "settings.toml").write_text(SETTINGS + own_index)
        options = settings.load(home)
        variables = {**stack.enter_context(serving(options)), **packages.variables}
        if packages.places:
            echo(f"    (its packages come from {', '.join(packages.places)}, too)", flush=True)
        if not programs:
            echo("in another terminal, until you interrupt this one:", flush=True)
            for name, value in variables.items():
                echo(f"  export {name}={value}", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()
            return 0
        environment = settings.environment_with(variables)
        for program in programs:
            echo(f"=== {program}", flush=True)
            began = time.monotonic()
            status = process.run_beside([sys.executable, "-u", str(program)], env=environment, cwd=str(program.parent))
            if status:
                return status
            echo(f"    ({time.monotonic() - began:.1f} s)", flush=True)
    return 0


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP (an ended `make`, a closed terminal) into an exit: else the server would stay."""

    def leave(number: int, _frame: object) -> None:
        for other in before:  # a second one does not end the ending
            signal.signal(other, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def serving(options: Settings) -> Iterator[dict[str, str]]:
    """Run a server and its node; give the variables by which programs use them. Both have ended afterwards."""
    log = options.home / "server.log"
    with open(log, "wb") as output:  # in a session of its own: this program ends it, not what a terminal interrupts
        pid = process.start_detached(
            [sys.executable, "-c", _PROGRAM, "server", "--listen", "127.0.0.1:0", "--home", str(options.home)],
            env=settings.environment_with({"ATOLL_HOME": str(options.home)}),
            descriptors=(),
            log=output.fileno(),
        )
    server = os.pidfd_open(pid)
    try:
        url = _address(options, server, log)
        with Direct(options.home) as accounts:
            added = accounts.add_user(bodies.NewUser(USER))
        assert added.key is not None
        echo(f"a server at {url}, with the user `{USER}`", flush=True)
        yield {
            "ATOLL_HOST": url,
            "ATOLL_KEY_ID": added.key.id,
            "ATOLL_KEY_SECRET": added.key.secret,
        }
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(server, number)
            if _ended(server, END_SECONDS):
                break
        os.close(server)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        _end_node(options)


def _ended(pidfd: int, seconds: float) -> bool:
    return bool(select.select([pidfd], [], [], seconds)[0])


def _address(options: Settings, server: int, log: Path) -> str:
    """Return the address of a server as soon as it listens."""
    deadline = time.monotonic() + START_SECONDS
    while not _ended(server, _POLL_SECONDS) and time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError, KeyError):
            return credentials.address_of(json.loads((options.run_directory / "server.json").read_text())["url"])
    said = log.read_text(errors="replace").strip()[-2000:]
    raise errors.HostUnreachable(f"the server did not start: {said or 'it said nothing'}", hint="see `atoll doctor`")


def _end_node(options: Settings) -> None:
    """End the node, and wait until its process has gone: its directory is about to be removed."""
    try:
        pid = int(json.loads((options.run_directory / "daemon.json").read_text())["pid"])
        descriptor = os.pidfd_open(pid)
    except (OSError, ValueError, KeyError):
        return
    try:
        environment = settings.environment_with({"ATOLL_HOME": str(options.home)})
        process.check([sys.executable, "-c", _PROGRAM, "stop"], env=environment, timeout_seconds=END_SECONDS)
        _ended(descriptor, END_SECONDS)
    finally:
        os.close(descriptor)
