"""Specs as a server understands them: nothing in them is a path of this machine, or asks for its interpreter."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from atoll import errors
from atoll.model.specs import EnvironmentSpec, LeaseSpec


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
    """Return an environment for a server: the caller's minor version of Python, by number, and uploads for paths.

    Raises:
        EnvironmentBuildError: it names a place of packages on this machine that cannot be uploaded.
    """
    version = spec.python_version or "{}.{}".format(*sys.version_info)
    found = replace(spec, python_version=version)
    if found.names_packages:
        from atoll.host.remote import local_packages  # for requirements alone

        found = local_packages.uploaded(host, found) if local_packages.has_any(found) else found
    if found.index:
        from atoll.host.remote import local_indexes  # as above

        needed = bool(found.requirements or found.pip)
        index = local_indexes.travelling(host, found.index, version) if needed else local_indexes.left_out(found.index)
        found = replace(found, index=index)
    return replace(found, interpreter="")


def environment_data(host: Any, data: dict[str, Any]) -> dict[str, Any]:
    """Return the data of an environment in a request, for a server."""
    return environment_for(host, EnvironmentSpec.from_data(data)).to_data()
