"""`requirements.lock`: lines that pin an environment's packages. No download addresses."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from atoll.environments.asked.redaction import redact

_LINE = re.compile(r"(?:# )?[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:==[!-~]+(?: from a local path)?| @ [!-~]+)")
"""A line of a lock. Packages wrote the parts: a line break in one would add requirements and options of their choice."""


def installed(packages: Path) -> str:
    """Return the lock of the packages in the directory `packages`: `name==version` lines, sorted.

    A repository is named with its commit; a package of a local path is a comment, since another machine has not
    got it. One whose metadata make no line is a comment too.
    """
    from packaging.utils import canonicalize_name  # for builds: the daemon starts without

    lines = []
    for directory in packages.iterdir():
        match = re.match(r"^(?P<name>.+?)-(?P<version>[^-]+)\.dist-info$", directory.name)
        if match:
            line = _line(canonicalize_name(match["name"]), match["version"], _origin(directory))
            lines.append(line if _LINE.fullmatch(line) else "# a package with malformed metadata")
    return "".join(f"{line}\n" for line in sorted(lines))


def _line(name: str, version: str, origin: dict[str, Any]) -> str:
    address = redact(str(origin.get("url", "")))
    vcs = origin.get("vcs_info")
    if isinstance(vcs, dict) and vcs.get("commit_id"):
        return f"{name} @ {vcs.get('vcs', 'git')}+{address}@{vcs['commit_id']}"
    if address.startswith("file:"):
        return f"# {name}=={version} from a local path"
    return f"{name} @ {address}" if address else f"{name}=={version}"


def _origin(directory: Path) -> dict[str, Any]:
    try:  # written by a package's build, perhaps: not through a symlink, and not all of it
        descriptor = os.open(directory / "direct_url.json", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            data = json.loads(file.read(1 << 16))
        return data if isinstance(data, dict) else {}
    except (OSError, ValueError):
        return {}


def constraints(text: str) -> list[str]:
    """Return the lines of a lock that a later build can be held to: names with versions."""
    return [line for line in without_hashes(text).splitlines() if re.match(r"^[a-z0-9-]+==\S+$", line)]


def without_hashes(text: str) -> str:
    """Return the lock as `installed` gave it."""
    return re.sub(r" \\\n( +--hash=\S+( \\)?\n?)+", "\n", text)


def with_hashes(text: str, resolved: str) -> str:
    """Return the lock `text` with the hashes that the same packages have in `resolved`."""
    from packaging.utils import canonicalize_name  # as in `installed`

    hashes: dict[str, list[str]] = {}
    current = ""
    for line in resolved.splitlines():
        match = re.match(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", line)
        if match:
            current = f"{canonicalize_name(match[1])}=={match[2]}"
        hashes.setdefault(current, []).extend(re.findall(r"--hash=(\S+)", line))
    lines = []
    for line in text.splitlines():
        pins = hashes.get(line, [])
        lines.append(" \\\n".join([line, *(f"    --hash={pin}" for pin in pins)]))
    return "".join(f"{line}\n" for line in lines)


def versions_in(path: Path) -> str:
    """Return a lock without its hashes; empty where there is none."""
    try:
        return without_hashes(path.read_text("utf-8"))
    except OSError:
        return ""
