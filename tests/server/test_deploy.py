"""The units of systemd and the container's recipe in `deploy/`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import atoll

from ..conftest import find_tool

ROOT = Path(__file__).parents[2]
_INIT = """#!/bin/bash
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc; mount -t tmpfs tmpfs /tmp; mount -t sysfs sysfs /sys; mount -t cgroup2 cgroup2 /sys/fs/cgroup
{python} {program} {source}
sync; echo o > /proc/sysrq-trigger; sleep 5
"""


@pytest.mark.parametrize("name", ["atoll.service", "atoll-node.service"])
def test_systemd_takes_the_unit(tmp_path: Path, name: str) -> None:
    """`systemd-analyze verify` finds nothing; one before 254 alone does not know `DelegateSubgroup=`."""
    program = find_tool("systemd-analyze")
    if program is None:
        pytest.skip("needs `systemd-analyze`")
    text = (ROOT / "deploy" / name).read_text()
    unit = tmp_path / name
    unit.write_text(text.replace("/opt/atoll/bin/atoll ", "/bin/true "))  # it wants programs that are there
    done = subprocess.run([program, "verify", str(unit)], capture_output=True, text=True, check=False, timeout=120)
    told = [line for line in done.stderr.splitlines() if name in line and "DelegateSubgroup" not in line]
    assert (done.returncode, told) == (0, []), done.stderr


@pytest.mark.root
def test_groups_of_a_unit_in_a_linux_of_its_own(tmp_path: Path) -> None:
    """With `DelegateSubgroup=` a node's groups are in the unit, without it beside the unit, by Debian's `user-mode-linux`."""
    linux = find_tool("linux.uml")
    if linux is None:
        pytest.skip("needs Debian's package user-mode-linux")
    init = tmp_path / "init"
    source = Path(atoll.__file__).parents[1]
    program = Path(__file__).with_name("kernel_cgroups.py")
    init.write_text(_INIT.format(python=sys.executable, program=program, source=source))
    init.chmod(0o755)
    options = ["mem=192M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={init}", "con=null"]
    options += ["con0=null,fd:1", "con1=null,fd:1", "quiet", f"uml_dir={tmp_path}", "umid=groups"]
    command = [linux, *options]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=500, check=False
    )
    lines = [line.partition("FACTS ")[2] for line in done.stdout.splitlines() if "FACTS " in line]
    assert len(lines) == 1, done.stdout[-3000:]
    all_of_them = ["cpu", "memory", "pids"]
    assert json.loads(lines[0]) == {
        "subgroup": [["system.slice/new.service/atoll-x", all_of_them]],
        "unit": [["system.slice/atoll-x", all_of_them]],
        "alone": [["system.slice/single.service/atoll-x", all_of_them]],
    }


def test_the_containers_recipe_copies_what_is_there() -> None:
    """Each file and directory that the recipe copies is in the repository."""
    lines = (ROOT / "deploy" / "Containerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert "src" in copied
    assert [name for name in copied if not (ROOT / name).exists()] == []
