"""A program that has very many files open, as a training with many data loaders has."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from ..conftest import Home

DESCRIPTORS = 1100

PROGRAM = f"""
import os, resource, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min({DESCRIPTORS + 200}, hard), hard))
held = [os.open(os.devnull, os.O_RDONLY) for _ in range({DESCRIPTORS})]
from atoll import isolated, local, sync_dir
from atoll.storage.client.volume import VolumeClient

@isolated(keep_alive=0)
def read(path):
    return open(path).read()

print(read(sync_dir(sys.argv[1], "many") + "/a"))
with VolumeClient(local.open_storage()) as volume:
    volume.write("written", [b"piece by piece"])
print(read("/data/written"))
"""


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_NOFILE)[1] < DESCRIPTORS + 200, reason="this user may not open so many files"
)
def test_a_program_with_very_many_open_files_syncs_and_calls(atoll_home: Home, tmp_path: Path) -> None:
    """Starting the daemon, calls, `sync_dir` and writes to the volume work with descriptors above 1,023."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_text("synced")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    assert atoll_home.python(str(program), str(source)).stdout.splitlines() == ["synced", "piece by piece"]
