"""A PostgreSQL server of Debian's, in a directory of its own, on a Unix socket alone."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from ..waiting import PATIENCE_SECONDS, until


def programs() -> Path | None:
    """Return the directory of `initdb` and `postgres`; Debian keeps them outside of PATH."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "postgres").exists()), None)


def empty(url: str) -> None:
    """Remove all tables of a database; for no address nothing."""
    if not url:
        return
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()


@contextlib.contextmanager
def running() -> Iterator[str]:
    """Run a server, as a plain user where root runs the tests, and give its address."""
    place = programs()
    if place is None:
        pytest.skip("needs Debian's `postgresql`")
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "cwd": "/"}
    with tempfile.TemporaryDirectory(prefix="atoll-pg-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        if os.geteuid() == 0:  # PostgreSQL refuses root
            user = pwd.getpwnam("nobody")
            os.chown(directory, user.pw_uid, user.pw_gid)
            options |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        data = directory / "data"
        made = subprocess.run(
            [place / "initdb", "-D", data, "-U", "atoll", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_SECONDS,
            **options,
        )
        assert made.returncode == 0, made.stderr
        started: list[str | Path] = [
            place / "postgres",
            "-D",
            data,
            "-k",
            directory,
            "-h",
            "",
            "-F",
            "-c",
            "shared_buffers=16MB",
        ]
        with subprocess.Popen(started, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options) as server:
            try:
                ready: list[str | Path] = [place / "pg_isready", "-q", "-h", directory, "-U", "atoll"]
                until(lambda: server.poll() is None and subprocess.run(ready, check=False).returncode == 0)
                yield f"postgresql+psycopg://atoll@/postgres?host={directory}"
            finally:
                server.send_signal(signal.SIGINT)  # its fast way to end
                server.wait(PATIENCE_SECONDS)
