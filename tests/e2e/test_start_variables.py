"""Variables that are read when a process starts, in functions and their children."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from atoll import errors, isolated
from tests.conftest import Home

pytestmark = [pytest.mark.as_user, pytest.mark.usefixtures("shared_home")]

ENV = {
    "LD_LIBRARY_PATH": "/data/started",
    "PYTHONPATH": "/data/started",
    "PYTHONHASHSEED": "0",
    "PYTHONWARNINGS": "error",
    "PYTHONOPTIMIZE": "1",
    "PYTHONFAULTHANDLER": "1",
    "PYTHONIOENCODING": "latin-1:replace",
    "PYTHONSAFEPATH": "1",
    "LC_ALL": "C",
}
PROBE = """
import codecs, ctypes, faulthandler, os, sys
import atoll_probed
ctypes.CDLL("libprobed.so")
found = {
    "path": "/data/started" in sys.path,
    "hash": hash("abc"),
    "warnings": sys.warnoptions,
    "optimize": sys.flags.optimize,
    "faulthandler": faulthandler.is_enabled(),
    "encoding": codecs.lookup(sys.stdout.encoding).name,
    "variables": sorted(set(os.environ) & NAMES),
}
"""


@isolated
def prepare() -> None:
    import ctypes  # noqa: F401 - has the C library loaded
    import shutil
    from pathlib import Path

    library = next(line.split()[-1] for line in open("/proc/self/maps") if "/libc" in line)
    os.makedirs("/data/started/atoll", exist_ok=True)
    shutil.copy(library, "/data/started/libprobed.so")
    Path("/data/started/atoll_probed.py").touch()
    Path("/data/started/atoll/__init__.py").write_text("raise ImportError('not the sandbox\\'s own')")
    Path("/data/started/_atoll_cloudpickle.py").write_text("raise ImportError('not the sandbox\\'s own')")


def probed(names: set[str]) -> tuple[Any, Any, str]:
    here: dict[str, Any] = {"NAMES": names}
    exec(PROBE, here)
    child = subprocess.run(
        [sys.executable, "-c", f"NAMES = {names!r}\n{PROBE}\nprint(found)"], capture_output=True, text=True, check=False
    )
    import atoll

    return here["found"], eval(child.stdout) if child.returncode == 0 else child.stderr, str(atoll.__file__)


def test_a_function_and_its_children_start_with_the_variables() -> None:
    """Loader, Python and locale have a function's variables; Atoll's own packages stay the sandbox's."""
    prepare()
    here, child, library = isolated(env=ENV)(probed)(set(ENV))
    assert here == child
    assert (here["path"], here["warnings"], here["optimize"], here["faulthandler"]) == (True, ["error"], 1, True)
    assert here["encoding"] == "iso8859-1"
    assert here["variables"] == sorted(ENV)
    assert library.startswith("/opt/atoll/lib/")


def test_variables_of_a_call_are_not_those_of_the_sandboxs_processes(shared_home: Home) -> None:
    """Secrets in `env` are in no process's first environment and no command line of a sandbox."""

    @isolated(env={"TOKEN": "s3cr3t-of-a-call", "PYTHONHASHSEED": "1"})
    def look() -> list[str]:
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            for place in ("environ", "cmdline"):
                try:
                    with open(f"/proc/{pid}/{place}", "rb") as file:
                        if b"s3cr3t-of-a-call" in file.read():
                            found.append(f"{pid} {place}")
                except OSError:
                    continue
        assert os.environ["TOKEN"] == "s3cr3t-of-a-call"
        return found

    assert look() == []


def test_a_start_that_fails_names_the_variables() -> None:
    """Where Python does not start with a function's variables, the error names them."""

    @isolated
    def spoil() -> None:
        os.makedirs("/data/spoiled", exist_ok=True)
        with open("/data/spoiled/encodings.py", "w") as file:
            file.write("1 / 0")

    spoil()
    with pytest.raises(errors.SandboxUnavailable, match="PYTHONPATH"):
        isolated(env={"PYTHONPATH": "/data/spoiled"})(abs)(1)


def test_a_function_names_its_file_mode_mask() -> None:
    """`umask` is the mask of a function and its children, for workers of its own."""

    @isolated(umask=0o027)
    def mask() -> tuple[int, str]:
        found = os.umask(0)
        os.umask(found)
        return found, subprocess.run(["sh", "-c", "umask"], capture_output=True, text=True, check=True).stdout.strip()

    assert mask() == (0o027, "0027")
    with pytest.raises(ValueError, match="umask"):
        isolated(umask=0o7777)(abs)
