"""Claims of the first page that no block of it shows."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import Home

PROGRAM = """
from atoll import Volume, isolated

@isolated(requirements=["pyjokes"])
def tell_joke(number):
    import pyjokes

    open("/data/told.txt", "a").close()
    return bool(pyjokes.get_jokes()[number])

if __name__ == "__main__":
    print(tell_joke(0), Volume().exists("told.txt"))
"""


@pytest.mark.root
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare of util-linux")
def test_a_built_environment_works_without_a_network(atoll_home: Home, tmp_path: Path) -> None:
    """With an environment that was built before, daemon, calls and commands need no network at all."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    assert atoll_home.python(str(program)).stdout == "True True\n"
    atoll_home.stop()  # the next daemon starts without a network too
    alone = ["unshare", "--net", sys.executable]
    done = subprocess.run(
        [*alone, str(program)], env=atoll_home.environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "True True\n", done.stderr
    assert "Building" not in done.stderr
