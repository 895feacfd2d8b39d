"""Files on `/data` behave inside a function as on the same disk outside of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from atoll import isolated

from ..conftest import Home
from . import file_semantics

pytestmark = pytest.mark.as_user

SOAK = bool(os.environ.get("SOAK"))
MODULES = ["test.test_fileio", "test.test_mmap", "test.test_glob", "test.test_dbm_dumb"]
if SOAK:
    MODULES += ["test.test_tempfile", "test.test_shutil", "test.test_shelve", "test.test_genericpath", "test.test_file"]
    MODULES += ["test.test_fcntl", "test.test_mailbox"]
STEPS = 20_000 if SOAK else 2_000


def test_files_on_data_behave_as_outside(atoll_home: Home) -> None:
    """Each call, a random sequence, databases and CPython's own tests have the same outcome in both places."""
    source = Path(file_semantics.__file__).read_text()

    def inside(directory: str, names: list[str], steps: int) -> tuple[Any, int, int]:
        space: dict[str, Any] = {"__name__": "file_semantics"}
        exec(source, space)
        return space["observe"](directory, names, steps), os.getuid(), os.getgid()

    found, uid, gid = isolated(inside)("/data/semantics", MODULES, STEPS)
    # Not below the state directory, which the function's user may not enter outside.
    with tempfile.TemporaryDirectory(prefix="atoll-test-", dir=atoll_home.path.parent) as outside:
        os.chmod(outside, 0o777)  # for the function's user, for this moment
        order = json.dumps([uid, gid, f"{outside}/semantics", MODULES, STEPS])
        done = subprocess.run(
            [sys.executable, file_semantics.__file__, order], capture_output=True, text=True, check=False, timeout=600
        )
    assert done.returncode == 0, done.stderr
    expected = json.loads(done.stdout.splitlines()[-1])  # test modules print as well
    # Decorators that ask for root's capabilities ask when the modules are imported, which is before root gives up its own.
    unclear = (
        file_semantics.CLOSED,
        "skipped: requires CAP_DAC_OVERRIDE",
        "skipped: incompatible with CAP_DAC_OVERRIDE",
        "skipped: no non-broken extended attribute support",
    )
    outcomes = (*expected["modules"].items(), *found["modules"].items())
    closed = {test for test, outcome in outcomes if outcome in unclear}
    assert not any(found["modules"].get(test) == "failed" for test in closed)
    for observed in (found, expected):
        observed |= {test: outcome for test, outcome in observed.pop("modules").items() if test not in closed}
    if os.geteuid() != 0 and found["give a file away"] == "EINVAL":  # the kernel's word for a uid that is not mapped
        found["give a file away"] = "EPERM"
    assert {what: (found.get(what), value) for what, value in expected.items() if found.get(what) != value} == {}
    assert found.keys() == expected.keys()
    assert found["flock"] == found["lockf"] == "EAGAIN"
