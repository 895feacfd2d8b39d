"""Specs as a server understands them: nothing in them is a path of this machine, or asks for its interpreter."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from atoll import errors
from atoll.model.specs import EnvironmentSpec, LeaseSpec

Upload = Callable[[Any, EnvironmentSpec], EnvironmentSpec]
"""Takes a host and an environment with paths in it; returns one that names what was uploaded in their place."""

upload: Upload | None = None
"""Set by who can upload; without it the server refuses paths by name."""


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
    found = replace(spec, interpreter="", python_version=version)
    return found if upload is None else upload(host, found)


def environment_data(host: Any, data: dict[str, Any]) -> dict[str, Any]:
    """Return the data of an environment in a request, for a server."""
    return environment_for(host, EnvironmentSpec.from_data(data)).to_data()
