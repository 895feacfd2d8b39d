"""A part of the conformance suite, its functions on two machines: `ATOLL_CONFORMANCE=cluster` runs all of it so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import ROOT, needs_outbound
from ..waiting import PATIENCE_SECONDS
from .machines import skip_reason

pytestmark = [pytest.mark.root, needs_outbound]

SELECTED = {
    "test_kinds": ["a_generator_may_call_functions", "map_gives_a_lost_worker_in_its_place", "over_its_timeout"],
    "test_detached": ["large_values_travel", "output_is_kept_and_can_be_followed"],
    "test_dial": ["speaks_http_to_a_function", "each_direction_of_a_stream"],
    "test_output": ["a_megabyte_before_a_kill_arrives"],
}
"""Words of the tests' names by module: each kind of line, and what goes over it."""


def test_two_machines_behave_as_one_server(tmp_path: Path) -> None:
    """Calls, generators, nested and detached calls and dialled ports do on two machines what they do on one."""
    if reason := skip_reason():
        pytest.skip(reason)
    modules = [str(ROOT / "tests" / "conformance" / f"{name}.py") for name in SELECTED]
    words = " or ".join(word for names in SELECTED.values() for word in names)
    options = ["-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'own'}", "-k", words]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *modules],
        cwd=ROOT,
        env={**os.environ, "ATOLL_CONFORMANCE": "cluster"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout, done.stdout[-1000:]
