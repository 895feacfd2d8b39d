"""What calls and failed processes could leave on a machine: sandboxes, mounts, groups, descriptors, sessions."""

from __future__ import annotations

import os
from pathlib import Path

from atoll.sandbox.limits.cgroups import name_for

from .cluster import Cluster, Node


def mounts(node: Node) -> list[str]:
    """Return the mount points of a node below its state directory, but for the JuiceFS that its daemon has mounted."""
    lines = Path(f"/proc/{node.machine.first.pid}/mountinfo").read_text().splitlines()
    own = str(node.home.path / "shared")
    return [point for line in lines if str(node.home.path) in line and (point := line.split()[4]) != own]


def groups(home: Path) -> list[Path]:
    """Return the control groups of sandboxes below a state directory's own that have processes, or whose daemon has gone."""
    found = []
    for directory in Path("/sys/fs/cgroup").rglob(name_for(home)):
        found += [path.parent for path in directory.rglob("cgroup.procs") if path.read_text().strip()]
    return found


def descriptors(pid: int) -> list[str]:
    """Return the targets of a process's descriptors; numbers of sockets are left out."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{name}").partition(":[")[0])
        except FileNotFoundError:
            continue
    return sorted(found)


def sandboxes(node: Node) -> list[int]:
    """Return the processes of a node beside its member and its daemon."""
    own = {node.daemon(), node.member.pid if node.member is not None else None}
    return [pid for pid in node.machine.processes() if pid not in own]


def sessions(cluster: Cluster) -> int:
    """Return how many lines the server knows of, on all its nodes."""
    return sum(int(row["lines"]) for row in cluster.rows() if row["name"] in cluster.nodes)
