"""A program for the first process of a Linux of its own: the place of a node's groups in units of systemd.

    python kernel_cgroups.py SOURCE

SOURCE is the directory of `atoll`. Prints one line of JSON: the places, by the kind of unit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def placed(group: Path, *, alone: bool) -> list[tuple[str, list[str]]]:
    """Return the places of a process in a group, beside another process unless it is alone."""
    from atoll.sandbox.limits import cgroups

    group.mkdir(parents=True)
    (group / "cgroup.procs").write_text(str(os.getpid()))
    beside = [] if alone else [subprocess.Popen(["sleep", "60"])]
    mounts, own = Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text()
    found = cgroups.place(cgroups.hierarchies(mounts, own), "atoll-x")
    for one in beside:
        one.kill()
        one.wait()
    return [(str(place.directory.relative_to(ROOT)), sorted(place.controllers)) for place in found]


def main() -> None:
    """Print the facts."""
    sys.path.insert(0, sys.argv[1])
    (ROOT / "cgroup.subtree_control").write_text("+memory +pids +cpu")
    (ROOT / "system.slice").mkdir()
    (ROOT / "system.slice" / "cgroup.subtree_control").write_text("+memory +pids +cpu")
    slices = ROOT / "system.slice"
    facts = {
        "subgroup": placed(slices / "new.service" / "server", alone=False),
        "unit": placed(slices / "old.service", alone=False),
        "alone": placed(slices / "single.service", alone=True),
    }
    print("FACTS", json.dumps(facts))


main()
