"""The options of `@isolated`, checked when the function is defined."""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import posixpath
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from atoll import errors
from atoll.model.specs import KINDS, NETWORKS
from atoll.sdk import conda_options, retries
from atoll.sdk.retries import Retries

if TYPE_CHECKING:
    from atoll.host.contract import Host

LATER = (
    "secrets",
    "serve",
    "exposed_port",
)
"""Options of the reference that this version does not have yet."""


@dataclass(frozen=True)
class Options:
    """What a function asks for; each field is an option of `@isolated` of the same name.

    Args:
        kind: `virtualenv` or `conda`.
        requirements: PEP 508 strings, pip options, local paths, VCS addresses.
        python_version: None means the caller's.
        keep_alive: seconds that an idle worker is kept.
        env: environment variables of the call.
        network: `outbound`, `none` or `host`; None means `outbound` where the machine can, else `host`.
        mounts: path inside -> directory of this machine, shown read-only.
        local_modules: names or paths of the project's modules that travel; None means found automatically.
        host: where it runs; None means the local host.
        timeout: seconds that a call may take, from when its worker has it, its `setup_function` included.
        retries: how often a call is made again; see `retries.Retries`.
        setup_function: prepares each worker, once; what it returns is the first argument of every call.
        machine_type: a name of `model.machine_types`, or None for the host's default.
        max_concurrency: calls of this function at a time, over all programs of the user; None for no bound.
        packages: conda's match specs.
        channels: names, addresses or directories, the first that has a package counts.
        env_yml: absolute path of a file, read when a call is made.
        env_dict: what such a file lists, as JSON.
        pip: like `requirements`, installed on top of `packages`.
        results: `pickle`, or `data`: results and exceptions come as plain data, decoded without running code.
    """

    kind: str = "virtualenv"
    requirements: tuple[str, ...] = ()
    python_version: str | None = None
    keep_alive: float = 10.0
    env: tuple[tuple[str, str], ...] = ()
    network: str | None = None
    mounts: tuple[tuple[str, str], ...] = ()
    local_modules: tuple[str, ...] | None = None
    host: Host | None = None
    timeout: float | None = None
    retries: Retries = field(default_factory=Retries)
    setup_function: Callable[[], Any] | None = None
    machine_type: str | None = None
    max_concurrency: int | None = None
    packages: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    env_yml: str | None = None
    env_dict: str | None = None
    pip: tuple[str, ...] = ()
    results: str = "pickle"

    def with_changes(self, changes: Mapping[str, Any]) -> Options:
        """Return these options with some changed, as a user gives them.

        Raises:
            TypeError: an option is unknown, of the wrong type, or does not go with another; names the nearest valid one.
            ValueError: its value is out of range.
        """
        known = [field.name for field in fields(self)]
        for name in changes:
            if name not in known:
                raise TypeError(_unknown(name, known))
        changed = replace(self, **{name: _CHECKS[name](value) for name, value in changes.items()})
        conda_options.check(vars(changed))
        return changed


def _unknown(name: str, known: list[str]) -> str:
    if name in LATER:
        return f"option `{name}` is not in this version of Atoll yet; it has {', '.join(known)}"
    near = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"the options are {', '.join(known)}"
    return f"unknown option `{name}`; {hint}"


def _kind(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"`kind` must be a text, is {value!r}")
    if value not in KINDS:
        raise ValueError(f"unknown kind `{value}`; the kinds are {', '.join(KINDS)}")
    return value


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(f"`{name}` must be a list of texts, is {value!r}; write `{name}=[{value!r}]`")
    items = tuple(value)
    for item in items:
        if not isinstance(item, str) or "\0" in item:
            raise TypeError(f"`{name}` must be a list of texts, and has {item!r}")
    return items


def _requirements(value: Any) -> tuple[str, ...]:
    return _entries("requirements", value)


def _entries(name: str, value: Any) -> tuple[str, ...]:
    return tuple(conda_options.absolute(entry.strip()) for entry in _texts(name, value or ()) if entry.strip())


def _env_yml(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str):
        raise TypeError(f"`env_yml` must be a path, is {value!r}")
    return os.path.abspath(os.path.expanduser(os.fspath(value)))


def _env_dict(value: Any) -> str | None:
    import json

    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise TypeError(f"`env_dict` must be a dict as an `environment.yml` has it, is {value!r}")
    try:
        found = conda_options.read_mapping(value)
    except ValueError as error:
        raise ValueError(f"`env_dict` cannot be used: {error}") from error
    return json.dumps({"channels": found.channels, "dependencies": [*found.packages, {"pip": found.pip}]})


def _python_version(value: Any) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise TypeError(f'`python_version` must be a text such as "3.11", is {value!r}')
    parts = value.strip().split(".")
    if not 1 <= len(parts) <= 3 or not all(part.isdigit() for part in parts):
        raise ValueError(f'`python_version` must be a version such as "3.11" or "3.11.7", is {value!r}')
    return value.strip()


def _keep_alive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"`keep_alive` must be a number of seconds, is {value!r}")
    if not 0 <= value < 1e9:
        raise ValueError(f"`keep_alive` must be from 0 to a billion seconds, is {value}")
    return float(value)


def _timeout(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"`timeout` must be a number of seconds, is {value!r}")
    if not 0 < value < 1e9:
        raise ValueError(f"`timeout` must be more than 0 and less than a billion seconds, is {value}")
    return float(value)


def _setup_function(value: Any) -> Any:
    if value is not None and not callable(value):
        raise TypeError(f"`setup_function` must be a function without arguments, is {value!r}")
    if value is not None and is_generator(value):
        raise TypeError(f"`setup_function` must return what it makes, and {value!r} is a generator function")
    return value


def _pairs(name: str, value: Any) -> dict[str, str]:
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"`{name}` must map texts to texts, is {value!r}")
    pairs = {os.fspath(key) if isinstance(key, os.PathLike) else key: item for key, item in (value or {}).items()}
    for key, item in pairs.items():
        if not isinstance(key, str) or not isinstance(item, (str, os.PathLike)):
            raise TypeError(f"`{name}` must map texts to texts, and has {key!r}: {item!r}")
        if "\0" in key or "\0" in os.fspath(item):
            raise ValueError(f"`{name}` has a NUL in {key!r}")
    return {key: os.fspath(item) for key, item in pairs.items()}


def _env(value: Any) -> tuple[tuple[str, str], ...]:
    pairs = _pairs("env", value)
    for name in pairs:
        if not name or "=" in name:
            raise ValueError(f"`env` has the name {name!r}, which no variable can have")
    return tuple(sorted(pairs.items()))


def _network(value: Any) -> str | None:
    if value is None or value in NETWORKS:
        return value  # type: ignore[no-any-return]  # one of the texts in NETWORKS
    raise ValueError(f"unknown network {value!r}; the policies are {', '.join(NETWORKS)}")


def _mounts(value: Any) -> tuple[tuple[str, str], ...]:
    pairs = {}
    for target, source in _pairs("mounts", value).items():
        if not target.startswith("/") or ".." in target.split("/") or posixpath.normpath(target) == "/":
            raise ValueError(f"mount `{target}` must be an absolute path below `/`, such as `/datasets`")
        pairs["/" + posixpath.normpath(target).lstrip("/")] = os.path.abspath(os.path.expanduser(source))
    for target in pairs:
        above = next((other for other in pairs if target.startswith(f"{other}/")), None)
        if above is not None:
            raise ValueError(f"mount `{target}` lies inside mount `{above}`; choose paths beside one another")
    return tuple(sorted(pairs.items()))


def _local_modules(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, (str, bytes)) and isinstance(value, Iterable):
        value = [os.fspath(item) if isinstance(item, os.PathLike) else item for item in value]
    return _texts("local_modules", value)


def _host(value: Any) -> Any:
    if value is None or callable(getattr(value, "run", None)):
        return value
    raise TypeError(f"`host` must be a host such as `local`, is {value!r}")


def _machine_type(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(f'`machine_type` must be a text such as "M", is {value!r}')
    from atoll.model import machine_types

    return machine_types.find(value).name


def _max_concurrency(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`max_concurrency` must be a whole number, is {value!r}")
    if not 1 <= value < 1_000_000:
        raise ValueError(f"`max_concurrency` must be from 1 to a million, is {value}")
    return value


def _results(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"`results` must be a text, is {value!r}")
    if value not in RESULTS:
        raise ValueError(f"unknown results `{value}`; they are {' and '.join(f'`{one}`' for one in RESULTS)}")
    return value


RESULTS = ("pickle", "data")

_CHECKS: dict[str, Any] = {
    "kind": _kind,
    "requirements": _requirements,
    "python_version": _python_version,
    "keep_alive": _keep_alive,
    "env": _env,
    "network": _network,
    "mounts": _mounts,
    "local_modules": _local_modules,
    "host": _host,
    "timeout": _timeout,
    "retries": retries.of,
    "setup_function": _setup_function,
    "machine_type": _machine_type,
    "max_concurrency": _max_concurrency,
    "packages": lambda value: _entries("packages", value),
    "channels": lambda value: _entries("channels", value),
    "env_yml": _env_yml,
    "env_dict": _env_dict,
    "pip": lambda value: _entries("pip", value),
    "results": _results,
}


def is_generator(function: Any) -> bool:
    """Whether calling a function gives items one by one, async or not."""
    call = (
        function if inspect.isroutine(function) or isinstance(function, functools.partial) else type(function).__call__
    )
    return inspect.isgeneratorfunction(call) or inspect.isasyncgenfunction(call)


def check_python_version(wanted: str | None) -> None:
    """Refuse another minor version for a function that travels as a pickle.

    Raises:
        PythonVersionMismatch: names both versions.
    """
    ours = sys.version_info[:2]
    parts = tuple(int(part) for part in (wanted or "").split(".") if part)[:2]
    if parts != ours[: len(parts)]:
        raise errors.PythonVersionMismatch(
            f"the function asks for Python {wanted}, and is pickled by Python {ours[0]}.{ours[1]}",
            hint=f"`atoll run FILE.py::FUNC` imports the file there; or run the program with Python {wanted}, or leave "
            "`python_version` out",
            wanted=wanted,
            found=f"{ours[0]}.{ours[1]}",
        )
