"""OpenSSH's server on loopback, with keys of its own, for one test."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..conftest import find_tool
from ..waiting import PATIENCE_SECONDS, until


@contextlib.contextmanager
def running(place: Path) -> Iterator[tuple[str, ...]]:
    """Run a server for the user of the test, and give the command of a client up to the name of the machine.

    The server of root wants an account and a directory that its package makes: it gets them in a mount namespace of its
    own.
    """
    programs = {name: find_tool(name) for name in ("sshd", "ssh", "ssh-keygen")}
    if None in programs.values():
        pytest.skip("needs OpenSSH; `.ci/tools` unpacks its server")
    place.mkdir(mode=0o700)
    for name in ("host", "user"):
        made = [str(programs["ssh-keygen"]), "-q", "-t", "ed25519", "-N", "", "-f", str(place / name)]
        subprocess.run(made, check=True, stdin=subprocess.DEVNULL)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        f"HostKey={place / 'host'}",
        f"AuthorizedKeysFile={place / 'user.pub'}",
        f"ListenAddress=127.0.0.1:{port}",
        f"PidFile={place / 'pid'}",
        "PermitRootLogin=yes",
        "StrictModes=no",
        "UsePAM=no",
        "PasswordAuthentication=no",
    ]
    server = [str(programs["sshd"]), "-D", "-e", "-f", "/dev/null", *(f"-o{option}" for option in options)]
    if os.geteuid() == 0:
        accounts = place / "passwd"
        lines = Path("/etc/passwd").read_text()
        if "\nsshd:" not in lines:
            lines += "sshd:x:65534:65534::/run/sshd:/usr/sbin/nologin\n"
        accounts.write_text(lines)
        steps = f"mount -t tmpfs none /run && mkdir -m 755 /run/sshd && mount --bind {shlex.quote(str(accounts))} /etc/passwd"
        server = ["unshare", "--mount", "sh", "-c", f'{steps} && exec "$@"', "sh", *server]
    client = [str(programs["ssh"]), "-F", "none", "-p", str(port), "-i", str(place / "user")]
    for option in ("IdentitiesOnly=yes", "BatchMode=yes", "StrictHostKeyChecking=no", "LogLevel=ERROR"):
        client += ["-o", option]
    client += ["-o", f"UserKnownHostsFile={place / 'known'}"]

    def listens() -> bool:
        assert process.poll() is None, "sshd has ended"
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return True
        return False

    with open(place / "log", "wb") as log, subprocess.Popen(server, stdin=subprocess.DEVNULL, stderr=log) as process:
        try:
            until(listens)
            yield tuple(client)
        finally:
            process.terminate()
            process.wait(PATIENCE_SECONDS)
