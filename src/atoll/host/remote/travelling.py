"""Specs as a server understands them: nothing in them is a path of this machine, or asks for its interpreter."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from typing import Any

from atoll import errors
from atoll.model.specs import EnvironmentSpec, LeaseSpec

_LISTS = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "UV_FIND_LINKS", "UV_INDEX", "UV_EXTRA_INDEX_URL")
_PATH = re.compile(r"([\w.-]+=)?(file:|/|\.{1,2}/|~|[A-Za-z]:[\\/])")


def spec_for(host: Any, spec: LeaseSpec) -> LeaseSpec:
    """Return a lease's spec for a server.

    Raises:
        ResourcesUnavailable: it has mounts, which are directories of this machine.
    """
    if spec.mounts:
        raise errors.ResourcesUnavailable(
            "`mounts` show directories of the machine that runs the function, and a server has none of yours",
            hint="put the data below `/data`: `sync_dir`, `Volume().put`",
        )
    return replace(spec, environment=environment_for(host, spec.environment))


def environment_for(host: Any, spec: EnvironmentSpec) -> EnvironmentSpec:
    """Return an environment for a server: the caller's minor version of Python, by number."""
    version = spec.python_version or "{}.{}".format(*sys.version_info)
    found = replace(spec, interpreter="", python_version=version, index=_without_paths(spec.index))
    if not found.requirements and not found.pip:
        return found
    from atoll.host.remote import local_packages  # for requirements alone

    return local_packages.uploaded(host, found) if local_packages.has_any(found) else found


def _without_paths(index: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Return index settings without this machine's directories: a server has other packages there, if any."""
    kept = []
    for name, value in index:
        if name in _LISTS:
            value = " ".join(entry for entry in value.split() if not _PATH.match(entry))
        if value:
            kept.append((name, value))
    return tuple(kept)


def environment_data(host: Any, data: dict[str, Any]) -> dict[str, Any]:
    """Return the data of an environment in a request, for a server."""
    return environment_for(host, EnvironmentSpec.from_data(data)).to_data()
