"""From the environments and machines of the clients to options of Atoll's functions."""

from __future__ import annotations

import re
from typing import Any

from google.protobuf import json_format

from atoll import errors
from atoll.sdk import conda_options

OWN = {"dill": ("dill==0.3.7",), "cloudpickle": ("cloudpickle>=3,<4", "grpcio")}
"""Packages of workers: what opens pickles, that of 2023 at the version that its client has.

The web app of today's `fal.App` comes by value, with modules of its client that import `grpc`.
"""
TBLIB = "tblib>=1.7,<3.2"
"""For exceptions with their causes; pickles of later versions cannot be read by the clients."""
_PATH = re.compile(r"[-./~]|.*file:|.*\\|[^/]*@\s*[./~]|(?!.*(https?|ssh|git)://)[^;]*/", re.DOTALL)
"""The beginning of a requirement that names an option or a file: this process would open one of the server's."""
_CHANNEL_PATH = re.compile(r"[-./~]|.*file:|.*\\", re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_VERSION = re.compile(r"\d+\.\d+")


def options_of(asked: Any, method: str) -> dict[str, Any]:
    """Return options of `@isolated` for a request with `environments` and `machine_requirements`.

    Args:
        method: that its pickles are made with.

    Raises:
        CallerError: an environment is of a kind that is not built here.
    """
    definition = next(iter(asked.environments), None)
    kind = definition.kind if definition is not None else "virtualenv"
    given: dict[str, Any] = json_format.MessageToDict(definition.configuration) if definition is not None else {}
    found: dict[str, Any]
    if kind == "virtualenv":
        found = {"requirements": _with_own(_checked(_flat(given.get("requirements"))), method)}
    elif kind == "conda":
        found = _conda(given, method)
    else:
        raise errors.CallerError(
            f"environments of the kind `{kind[:50]}` are not built here",
            hint="use `virtualenv` or `conda`: a container image cannot be a sandbox's",
        )
    version = _VERSION.match(str(given.get("python_version") or ""))
    if version:
        found["python_version"] = version[0]
    return {"kind": kind, **found, **_machine(asked.machine_requirements)}


def _checked(entries: list[str], path: re.Pattern[str] = _PATH) -> list[str]:
    """Return entries that name no file.

    Raises:
        CallerError: one does.
    """
    for one in entries:
        if "\n" in one or "\r" in one or path.match(one.strip()):
            raise errors.CallerError(
                f"`{one[:100]}` names a file or an option, and a server has no files of yours",
                hint="name a package, or an address such as `git+https://…`",
            )
    return entries


def _machine(asked: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    kinds = [*asked.machine_types] or ([asked.machine_type] if asked.machine_type else [])
    if kinds:
        found["machine_type"] = kinds[0]
    if asked.HasField("keep_alive"):
        found["keep_alive"] = float(max(asked.keep_alive, 0))
    if asked.HasField("num_gpus") and asked.num_gpus > 0:
        found["gpu"] = asked.num_gpus
    return found


def _flat(value: Any) -> list[str]:
    """Return requirements: a list, or a list of lists that the client means as steps."""
    found: list[str] = []
    for one in value or []:
        found += [str(item) for item in one] if isinstance(one, list) else [str(one)]
    return found


def _with_own(requirements: list[str], method: str) -> list[str]:
    """Return requirements with those of the worker that they do not name."""
    names = {name[0].lower().replace("_", "-") for one in requirements if (name := _NAME.match(one))}
    return requirements + [
        one for one in (*OWN.get(method, ()), TBLIB) if (_NAME.match(one) or one)[0].lower() not in names
    ]


def _conda(given: dict[str, Any], method: str) -> dict[str, Any]:
    described = given.get("env_dict") or (_read(str(given["env_yml_str"])) if given.get("env_yml_str") else {})
    if not isinstance(described, dict):
        raise errors.CallerError("the environment is described by no mapping", hint="see `environment.yml` of conda")
    packages, pip = [str(one) for one in given.get("packages") or []], [str(one) for one in given.get("pip") or []]
    for one in described.get("dependencies") or []:
        if isinstance(one, dict):
            pip += [str(item) for item in one.get("pip") or []]
        else:
            packages.append(str(one))
    channels = [str(one) for one in (given.get("channels") or described.get("channels") or [])]
    found = {"pip": _with_own(_checked(pip), method), "packages": _checked(packages, _CHANNEL_PATH)}
    if channels:
        found["channels"] = _checked(channels, _CHANNEL_PATH)
    return found


def _read(text: str) -> Any:
    try:
        return conda_options.parse(text)
    except ValueError as error:
        raise errors.EnvironmentBuildError(
            f"`env_yml_str` cannot be read: {error}", hint="give the contents of an `environment.yml`"
        ) from error
