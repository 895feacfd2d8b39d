"""Stages: namespaces with a Ray cluster in them, in which scenes are played. Ray never comes into the test's process.

A stage has processes, network, mounts and users of its own: its end is the end of all that Ray and the scenes started,
and ports are its own. Scenes are functions of `scenes.py`, played by a fresh Python.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"
ADDRESS = "127.0.0.1"
PORT = "6379"
TOKEN = "a" * 40
QUICK_CHECKS = '{"health_check_initial_delay_ms":0,"health_check_period_ms":500,"health_check_failure_threshold":3}'
STORE_BYTES = "80000000"
PLAY_SECONDS = 120
_FIRST = "ip link set lo up && echo ready && sleep infinity & wait -n; wait"
"""The first process: it waits for orphans. The shell's `&` binds the whole list."""


class Stage:
    """Namespaces, and a directory with a short path: Ray's sockets are below it."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self._environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '/usr/bin:/bin')}",
            "HOME": str(self.directory),
            "PYTHONPATH": str(SOURCE),
            "RAY_TMPDIR": str(self.directory),
            "RAY_USAGE_STATS_ENABLED": "0",
            "STAGE": str(self.directory),
            **variables,
        }
        own_users = (
            [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        )  # root's node gives users uids of their own
        self._first = subprocess.Popen(
            [
                *("unshare", *own_users, "--net", "--mount", "--pid", "--fork", "--mount-proc"),
                *("--kill-child=SIGKILL", "bash", "-c", _FIRST),
            ],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._first.stdout is not None
        assert self._first.stdout.readline() == b"ready\n"
        children = Path(f"/proc/{self._first.pid}/task/{self._first.pid}/children").read_text().split()
        self._inside = ["nsenter", "--target", children[0], *own_users[:1], "--net", "--mount", "--pid"]

    def run(self, *argv: str, variables: Mapping[str, str] | None = None) -> str:
        """Run a program on the stage; return its output."""
        done = subprocess.run(
            [*self._inside, "--preserve-credentials", "--wd=/", "--", *argv],
            env={**self._environment, **(variables or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PLAY_SECONDS,
            check=False,
            text=True,
        )
        assert done.returncode == 0, f"{argv}\n{done.stdout[-6000:]}\n{self._driver_log()}"
        return done.stdout

    def play(self, scene: str, variables: Mapping[str, str] | None = None) -> None:
        """Play a scene."""
        self.run(sys.executable, "-W", "ignore", str(HERE / "scenes.py"), scene, variables=variables)

    def start_head(self, *options: str, variables: Mapping[str, str] | None = None) -> None:
        """Start the head node of a cluster."""
        self.run(
            *("ray", "start", "--head", f"--port={PORT}", "--include-dashboard=false"),
            *(f"--object-store-memory={STORE_BYTES}", *options),
            variables=variables,
        )

    def start_node(self, *options: str) -> None:
        """Start another node of the cluster."""
        self.run("ray", "start", f"--address={ADDRESS}:{PORT}", f"--object-store-memory={STORE_BYTES}", *options)

    def _driver_log(self) -> str:
        try:
            return (self.directory / "driver.log").read_text()[-3000:]
        except OSError:
            return ""

    def close(self) -> None:
        """End all that runs on the stage, and remove its files."""
        self._first.kill()
        self._first.wait()
        assert self._first.stdout is not None
        self._first.stdout.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def ray_directory() -> str:
    """Return the directory of Ray's package."""
    found = importlib.util.find_spec("ray")
    assert found is not None
    assert found.origin is not None
    return str(Path(found.origin).parent)


@contextlib.contextmanager
def opened(variables: Mapping[str, str] | None = None) -> Iterator[Stage]:
    """Open a stage; skip the test where there is no Ray, or no namespaces."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: `pip install 'atoll[ray]'`")
    for program in ("ip", "nsenter", "unshare"):
        if shutil.which(program) is None:
            pytest.skip(f"there is no `{program}`")
    stage = Stage(variables or {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN})
    try:
        yield stage
    finally:
        stage.close()
