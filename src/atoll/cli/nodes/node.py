"""`atoll node`: join this machine to a server, and run it as a node of that one."""

from __future__ import annotations

import contextlib
import importlib
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import cyclopts

from atoll import credentials, errors, process, settings
from atoll.cli.accounts.place import has_accounts, home_of
from atoll.cli.confirmation import Yes, confirmed
from atoll.cli.nodes.values import certificates_of, labels_of, machine_name, token_of
from atoll.cli.programs.program import TargetError
from atoll.cli.tables import date, print_json
from atoll.cli.terminal import echo, echo_lines
from atoll.host.local import LocalHost
from atoll.host.remote.proxies import is_loopback
from atoll.server.member import joined
from atoll.terminal_text import printable

app = cyclopts.App(
    name="node",
    help="Join this machine to a server, and run it as a node of that one: its calls then run here, too.",
    help_format="plaintext",
    version_flags=[],
    result_action="return_value",
)

Flag = cyclopts.Parameter(negative="")
STOP_SECONDS, START_SECONDS, LINK_SECONDS = 60.0, 30.0, 15.0
"""Seconds in which a node that is told to end in order has ended, in which one that is started runs, and has a link."""
LOOK_SECONDS = 0.1
REFUSED_STATUS = 3
"""Exit status of a node that its server does not know any more: to start it again cannot help."""
_PROGRAM = "from atoll.cli.main import main; main()"


@app.command
def join(
    url: str,
    /,
    *,
    token: str = "",
    token_file: Annotated[Path | None, cyclopts.Parameter(allow_leading_hyphen=True)] = None,
    name: str = "",
    label: Annotated[list[str] | None, Flag] = None,
    ca_file: Annotated[Path | None, cyclopts.Parameter(allow_leading_hyphen=True)] = None,
    replace: Annotated[bool, Flag] = False,
    no_run: Annotated[bool, Flag] = False,
    detach: Annotated[bool, Flag] = False,
    home: Path | None = None,
) -> int:
    """Join a server with a token, keep the credentials, and run as its node until interrupted.

    Later starts need no token: `atoll node run`.

    Parameters
    ----------
    url: str
        Address of the server, such as https://lab.example:8443.
    token: str
        A token of `atoll nodes token`. Programs of other users may see it in the list of processes meanwhile.
    token_file: Path
        File that has the token; `-` for the standard input. A third way is the variable ATOLL_JOIN_TOKEN.
    name: str
        What the server calls this machine; default: its host name.
    label: list[str]
        A label for placement, such as zone=lab-2; may be given again.
    ca_file: Path
        Certificates to trust in place of the system's, in PEM; `-` for the rest of the standard input.
    replace: bool
        Take the place of a node of this name, or of the server that this machine has joined before.
    no_run: bool
        Join alone, and leave the run to systemd or another command.
    detach: bool
        Run in the background.
    home: Path
        State directory of the node; default: as ATOLL_HOME says.
    """
    place = home_of(home)
    if no_run and detach:
        raise TargetError("`--no-run` and `--detach` do not go together")
    secret = token_of(token, token_file)
    address = credentials.address_of(url)
    _check_place(place, replace=replace)
    joined.prepare(place)
    if urlsplit(address).scheme == "http" and not is_loopback(urlsplit(address).hostname or ""):
        echo("warning: without TLS, the node's credentials and all data can be read on the way", error=True)
    found = joined.join(
        address,
        secret,
        name or machine_name(),
        labels=labels_of(label),
        ca_file=certificates_of(ca_file, place),
        replace=replace,
    )
    joined.write(place, found)
    echo(f"joined {printable(found.url)} as `{found.name}`", error=True)
    if no_run:
        echo(f"to run it: `atoll node run{_option(place)}`", error=True)
        return 0
    return _detached(place) if detach else _run(place)


@app.command
def run(*, detach: Annotated[bool, Flag] = False, home: Path | None = None) -> int:
    """Run this machine as a node of the server that it has joined, until interrupted.

    Parameters
    ----------
    detach: bool
        Run in the background.
    home: Path
        State directory of the node; default: as ATOLL_HOME says.
    """
    place = home_of(home)
    joined.need(place)
    return _detached(place) if detach else _run(place)


@app.command
def status(*, json: Annotated[bool, Flag] = False, home: Path | None = None) -> int:
    """Show the server that this machine has joined, and how that one sees it.

    Parameters
    ----------
    json: bool
        Print an object with `url`, `name`, `pid` (0: does not run) and `node`, its row at the server.
    home: Path
        State directory of the node; default: as ATOLL_HOME says.
    """
    place = home_of(home)
    found = joined.need(place)
    pid = joined.running(place)
    failure: errors.AtollError | None = None
    try:
        row = joined.row(found)
    except errors.AtollError as error:
        row, failure = {}, error
    if json:
        print_json({"url": found.url, "name": found.name, "pid": pid, "node": row or None})
        return 0 if row else 1
    echo(f"server   {printable(found.url)}")
    echo(f"node     {found.name}, {f'runs here (pid {pid})' if pid else 'does not run here'}")
    if failure is not None:
        raise failure
    linked = "linked" if row["linked"] else "not linked"
    heard = f", last word {date(row['seen'])}" if row["seen"] else ""
    echo(f"state    {row['state']}, {linked}{heard}")
    if not pid:
        echo(f"to run it: `atoll node run{_option(place)}`", error=True)
    return 0


@app.command
def stop(*, home: Path | None = None) -> int:
    """End the process that runs this machine's node, in order. Its calls end 10 s later unless it runs again by then.

    Parameters
    ----------
    home: Path
        State directory of the node; default: as ATOLL_HOME says.
    """
    place = home_of(home)
    echo("stopped" if _stop(place) else "the node does not run here", error=True)
    return 0


@app.command
def leave(*, force: Annotated[bool, Flag] = False, yes: Yes = False, home: Path | None = None) -> int:
    """Leave the server: the node's calls end, its credentials are worth nothing, and it is forgotten here.

    Parameters
    ----------
    force: bool
        Forget the server also if it does not answer; an operator removes the node there.
    yes: bool
        Do not ask.
    home: Path
        State directory of the node; default: as ATOLL_HOME says.
    """
    place = home_of(home)
    found = joined.need(place)
    costs = [f"the calls that run here for {printable(found.url)} end; to join again takes a new token"]
    if not yes and not confirmed([], costs, "leave the server?", replaceable=False):
        return 1
    try:
        joined.leave(found)
    except errors.NotAuthorized as error:  # it was removed there
        echo(f"{error.message}: it is forgotten here, too", error=True)
    except errors.AtollError as error:
        if not force:
            raise
        echo(f"warning: {error.message}", error=True)
        echo(f"on the server: `atoll nodes remove {found.name}`", error=True)
    _stop(place)
    _end_calls(place)
    joined.forget(place)
    echo(f"left {printable(found.url)}", error=True)
    return 0


# --- parts --------------------------------------------------------------------------------------------------------


def _check_place(home: Path, *, replace: bool) -> None:
    """Check that a state directory may be a node's.

    Raises:
        StateUnusable: it is a server's own, or has joined a server already.
    """
    if has_accounts(home):
        raise errors.StateUnusable(
            f"a server has run in `{printable(str(home))}`, and its machine is a node of that one already",
            hint="join from another machine, or give another `--home`",
        )
    before = joined.read(home)
    if before is not None and not replace and not joined.is_removed(before):
        raise errors.StateUnusable(
            f"this machine has joined {printable(before.url)} as `{before.name}`",
            hint="run it: `atoll node run`; or leave that server first: `atoll node leave`; or give `--replace`",
        )
    if pid := joined.running(home):
        raise errors.StateUnusable(f"the node of this machine runs (pid {pid})", hint="first: `atoll node stop`")


def _run(home: Path) -> int:
    """Run the node in this process."""
    try:
        main = importlib.import_module("atoll.server.member.main")
    except ImportError as error:
        raise errors.StateUnusable(
            f"a node needs packages that are not installed: {error}", hint="pip install 'atoll[server]'"
        ) from error
    with joined.only_one(home):
        try:
            return int(main.run(home, lambda line: echo(line, flush=True)))
        except errors.NotAuthorized as error:
            if error.status == 429:  # passes with time
                raise
            _end_calls(home)
            echo_lines(f"error: {error}", error=True)
            return REFUSED_STATUS


def _detached(home: Path) -> int:
    """Run the node in a process of its own session, whose output goes to a file; return when it runs or has failed."""
    with joined.open_log(home) as log:
        began = log.tell()
        command = [sys.executable, "-P", "-c", _PROGRAM, "node", "run", "--home", str(home)]
        child = process.start_session(command, log=log.fileno())
        path = printable(log.name)
        for _ in range(int(START_SECONDS / LOOK_SECONDS)):
            if joined.running(home) == child.pid:
                echo(f"runs in the background (pid {child.pid}), with the log {path}", error=True)
                return _wait_for_link(home)
            if child.poll() is not None:
                break
            time.sleep(LOOK_SECONDS)
        with open(log.name, "rb") as written:
            written.seek(began)
            told = written.read(4096).decode(errors="replace").strip()
    raise errors.StateUnusable(f"the node does not start: {printable(told)}", hint=f"see {path}")


def _wait_for_link(home: Path) -> int:
    """Wait until the server has a link of the node, and return 0; a line says so if it takes long."""
    found = joined.need(home)
    for _ in range(int(LINK_SECONDS / LOOK_SECONDS)):
        if not joined.running(home):
            break
        with contextlib.suppress(errors.AtollError):
            if joined.row(found)["linked"]:
                return 0
        time.sleep(LOOK_SECONDS)
    else:
        echo("warning: it has no link yet, and goes on trying; see its log", error=True)
        return 0
    raise errors.StateUnusable("the node has ended", hint="see its log")


def _stop(home: Path) -> bool:
    """End the process that runs a node, and wait for its end; return whether there was one.

    Raises:
        StateUnusable: it does not end.
    """
    pid = joined.running(home)
    if not pid:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    for _ in range(int(STOP_SECONDS / LOOK_SECONDS)):
        if joined.running(home) != pid:
            return True
        time.sleep(LOOK_SECONDS)
    raise errors.StateUnusable(f"the node (pid {pid}) does not end", hint=f"look at it, and end it: `kill -9 {pid}`")


def _end_calls(home: Path) -> None:
    """End what runs here for the users of a server that does not know this node any more: nobody waits for its lease."""
    with contextlib.suppress(errors.AtollError):
        LocalHost(home).request_running("fence", {"seconds": 0})


def _option(home: Path) -> str:
    """Return the option that names a state directory, where it is not the default one."""
    return "" if home == settings.default_home() else f" --home {shlex.quote(str(home))}"
