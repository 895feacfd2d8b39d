"""`atoll doctor --data`: the file system under `/data`, tried by the volume's own peer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ..conftest import Home

pytestmark = pytest.mark.as_user


def test_the_volume_is_tried_as_its_owner(shared_home: Home) -> None:
    """All that `/data` needs works here; what is found is a table for people and an object for programs."""
    done = shared_home.atoll("doctor", "--data", "--json")
    found = json.loads(done.stdout)
    assert found["ok"] is True
    by_name = {ability["name"]: ability for ability in found["abilities"]}
    assert {"file system", "atomic exchange", "`flock` locks", "appends", "reflinks", "free space"} <= by_name.keys()
    assert set(by_name["hard links"]) == {"name", "needed", "works", "detail", "loses", "fix"}
    table = shared_home.atoll("doctor", "--data").stdout
    assert "everything that `/data` needs works" in table
    assert all(name in table for name in by_name)
    staging = os.listdir(shared_home.path / "volumes/local/staging")
    assert not [name for name in staging if name.startswith(("tree-", "trash-"))]


@pytest.mark.root
def test_a_disk_that_is_not_good_enough_fails(atoll_home: Home, tmp_path: Path) -> None:
    """On a file system without something that is needed the status is 1, with what is lost and the fix."""
    made = shutil.which("mkfs.ext4", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if made is None:
        pytest.skip("needs `mkfs.ext4`")
    image, mount = tmp_path / "image", tmp_path / "mount"
    mount.mkdir()
    (atoll_home.path / "volumes").symlink_to(mount)
    with image.open("wb") as file:
        file.truncate(32 << 20)
    options = ["-q", "-F", "-I", "128", "-O", "^metadata_csum,^64bit"]
    subprocess.run([made, *options, str(image)], check=True, capture_output=True)
    subprocess.run(["mount", "-t", "ext4", "-o", "loop", str(image), str(mount)], check=True)
    try:
        done = atoll_home.atoll("doctor", "--data", check=False)
        atoll_home.stop()
        assert atoll_home.wait_processes() == []
    finally:
        subprocess.run(["umount", str(mount)], check=True)
    assert done.returncode == 1, done.stderr
    assert "without modification times: files count as changed at each sync" in done.stdout
    assert "fix: set `ATOLL_HOME` to a directory on ext4" in done.stdout
    assert "something that `/data` needs does not work" in done.stdout
