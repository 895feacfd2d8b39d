"""The options of `@isolated`, checked when the function is defined."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import posixpath
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from atoll import errors
from atoll.model import schedule_rules, start_variables
from atoll.model.secret_values import check_name
from atoll.model.spec_fields import MOST_GRACE_SECONDS, UMASK, check_port
from atoll.model.specs import KINDS, NETWORKS
from atoll.payload import project
from atoll.sdk import conda_options, retries
from atoll.sdk.retries import Retries

if TYPE_CHECKING:
    from atoll.host.contract import Host

RESULTS = ("pickle", "data")
_NAME = re.compile(r"[A-Za-z0-9_-]+(\[[\w, -]*\])?\s*([=<>!~].*)?")
"""A package's name without a dot, with extras and versions."""


@dataclass(frozen=True)
class Options:
    """The options of one function; each field is an option of `@isolated` of the same name.

    `decorator.isolated` says what they mean, `option_types` with all details. Here they have their checked forms: paths
    are absolute, sizes are bytes, `env_dict` is JSON, and None stands for the default that the host or the call decides.
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
    cpu: float | None = None
    memory: int | None = None
    gpu: tuple[int, str] | None = None
    disk: int | None = None
    max_concurrency: int | None = None
    packages: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    env_yml: str | None = None
    env_dict: str | None = None
    pip: tuple[str, ...] = ()
    results: str = "pickle"
    preload: tuple[str, ...] | None = None
    umask: int = UMASK
    grace: float = 2.0
    terminal: bool | None = None
    on_done: str | None = None
    secrets: tuple[str, ...] | None = None
    serve: bool = False
    exposed_port: int | None = None
    schedule: str | None = None
    timezone: str = "UTC"
    overlap: str = "skip"
    missed: str = "skip"

    @property
    def named_packages(self) -> tuple[str, ...]:
        """The requirements of every kind."""
        return (*self.requirements, *self.packages, *self.pip)

    def with_changes(self, changes: Mapping[str, Any]) -> Options:
        """Return these options with some changed, as a user gives them.

        Raises:
            TypeError: an option is unknown, of the wrong type, or does not go with another; names the nearest valid one.
            ValueError: its value is out of range.
        """
        if "credentials" in changes:
            from atoll.host.remote.older_names import host_with  # for older programs

            changes = dict(changes)
            changes["host"] = host_with(changes.get("host", self.host), changes.pop("credentials"))
        known = [field.name for field in fields(self)]
        for name in changes:
            if name not in known:
                from atoll.sdk.option_names import unknown  # for a mistake only

                raise TypeError(unknown(name, known))
        changed = replace(self, **{name: _CHECKS[name](name, value) for name, value in changes.items()})
        conda_options.check(vars(changed))
        return changed

    @functools.cached_property
    def follows_files(self) -> bool:
        """True if the environment depends on files of the project, which a call reads again."""
        if self.env_yml is not None or '"-r ' in (self.env_dict or ""):
            return True
        if not any(entry.startswith(("-", "/")) or "file:" in entry for entry in self._entries):
            return False
        from atoll.sdk.requirements.entries import names_files  # most functions name packages only
        from atoll.sdk.requirements.local_stamps import holds_path  # as above

        return names_files(self._entries) or any(map(holds_path, self._entries))

    @property
    def _entries(self) -> tuple[str, ...]:
        return (*self.requirements, *self.pip)

    def closed(self) -> Options:
        """Return these options with the contents of the requirements' files, for a sandbox that has no such files.

        Variables in them stay unread: the function would see the caller's secrets.

        A file that cannot be read stays named: the call that needs it fails.
        """
        if not self.follows_files:
            return self
        from atoll.sdk.requirements.contents import read  # as in `follows_files`

        with contextlib.suppress(errors.EnvironmentBuildError):
            return replace(
                self, requirements=read(self.requirements, variables=False), pip=read(self.pip, variables=False)
            )
        return self

    def located(self, function: Any) -> Options:
        """Return these options with absolute paths in the requirements, as a function's program means them."""
        if not any(map(_may_hold_path, self._entries)):
            return self
        from atoll.sdk.requirements.entries import absolute  # as in `follows_files`

        directories = project.directories(function)
        return replace(self, requirements=absolute(self.requirements, directories), pip=absolute(self.pip, directories))


def signature(*first: inspect.Parameter) -> inspect.Signature:
    """Return the signature of a function that takes the options by name, for `help` and for completion."""
    taken = {parameter.name for parameter in first}
    return inspect.Signature([*first, *(one for one in _parameters() if one.name not in taken)])


@functools.cache
def _parameters() -> list[inspect.Parameter]:
    defaults = {one.name: 0 if one.name == "retries" else one.default for one in fields(Options)}
    kind = inspect.Parameter.KEYWORD_ONLY
    return [inspect.Parameter(name, kind, default=default) for name, default in defaults.items()]


def _may_hold_path(entry: str) -> bool:
    """Return whether a requirement is more than a name with a version."""
    return entry.startswith("-") or not _NAME.fullmatch(entry)


# --- checks: each takes an option's name and value, and returns the value to keep -----------------------------------

Check = Callable[[str, Any], Any]


def _typed(wanted: str, kind: Any, check: Check = lambda _, value: value) -> Check:
    """Check the type first; a truth value is no number."""

    def typed(name: str, value: Any) -> Any:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TypeError(f"`{name}` must be {wanted}, is {value!r}")
        return check(name, value)

    return typed


def _unless_none(check: Check) -> Check:
    """Let None through: the option is unset."""
    return lambda name, value: None if value is None else check(name, value)


def _one_of(choices: tuple[str, ...]) -> Check:
    def chosen(name: str, value: Any) -> str:
        if value not in choices:
            raise ValueError(
                f"unknown {name} `{value}`; known {'are' if len(choices) > 1 else 'is'} {', '.join(choices)}"
            )
        return str(value)

    return _typed("a text", str, chosen)


def _seconds(least: float, wanted: str, most: float = 1e9 - 1) -> Check:
    """Check a number of seconds, by default below a billion, which every clock can add."""

    def seconds(name: str, value: Any) -> float:
        if not least <= value <= most:
            raise ValueError(f"`{name}` must be {wanted} seconds, is {value}")
        return float(value)

    return _typed("a number of seconds", (int, float), seconds)


def _concurrency(name: str, value: Any) -> int:
    if not 1 <= value < 1_000_000:
        raise ValueError(f"`{name}` must be from 1 to a million, is {value}")
    return int(value)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(f"`{name}` must be a list of texts, is {value!r}; write `{name}=[{value!r}]`")
    items = tuple(value)
    for item in items:
        if not isinstance(item, str) or "\0" in item:
            raise TypeError(f"`{name}` must be a list of texts, and has {item!r}")
    return items


def _entries(name: str, value: Any) -> tuple[str, ...]:
    return tuple(conda_options.absolute(entry.strip()) for entry in _texts(name, value or ()) if entry.strip())


def _requirements(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, (str, os.PathLike)) and value:
        from atoll.sdk.requirements.entries import read_file_name  # as in `Options.follows_files`

        value = read_file_name(value)
    elif not isinstance(value, (str, bytes)) and isinstance(value, Iterable):
        value = [os.fspath(item) if isinstance(item, os.PathLike) else item for item in value]
    return tuple(entry.strip() for entry in _texts(name, value or ()) if entry.strip())


def _path(name: str, value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str):
        raise TypeError(f"`{name}` must be a path, is {value!r}")
    return os.path.abspath(os.path.expanduser(os.fspath(value)))


def _python_version(name: str, value: Any) -> str | None:
    parts = value.strip().split(".")
    if value and not (1 <= len(parts) <= 3 and all(part.isdigit() for part in parts)):
        raise ValueError(f'`{name}` must be a version such as "3.11" or "3.11.7", is {value!r}')
    return value.strip() or None


def _setup_function(name: str, value: Any) -> Any:
    if not callable(value):
        raise TypeError(f"`{name}` must be a function without arguments, is {value!r}")
    if is_generator(value):
        raise TypeError(f"`{name}` must return its result, and {value!r} is a generator function")
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


def _env(name: str, value: Any) -> tuple[tuple[str, str], ...]:
    pairs = _pairs(name, value)
    for variable in pairs:
        if not variable or "=" in variable:
            raise ValueError(f"`{name}` has the name {variable!r}, which no variable can have")
        start_variables.check(variable, pairs[variable])
    return tuple(sorted(pairs.items()))


def _mounts(name: str, value: Any) -> tuple[tuple[str, str], ...]:
    pairs = {}
    for target, source in _pairs(name, value).items():
        if not target.startswith("/") or ".." in target.split("/") or posixpath.normpath(target) == "/":
            raise ValueError(f"mount `{target}` must be an absolute path below `/`, such as `/datasets`")
        pairs["/" + posixpath.normpath(target).lstrip("/")] = os.path.abspath(os.path.expanduser(source))
    for target in pairs:
        above = next((other for other in pairs if target.startswith(f"{other}/")), None)
        if above is not None:
            raise ValueError(f"mount `{target}` lies inside mount `{above}`; choose paths beside one another")
    return tuple(sorted(pairs.items()))


def _local_modules(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (str, bytes)) and isinstance(value, Iterable):
        value = [os.fspath(item) if isinstance(item, os.PathLike) else item for item in value]
    return _texts(name, value)


def _host(name: str, value: Any) -> Any:
    if not callable(getattr(value, "run", None)):
        raise TypeError(f"`{name}` must be a host such as `local`, is {value!r}")
    return value


def _resource(name: str, value: Any) -> Any:
    from atoll.sdk import resource_options  # most functions name none

    return resource_options.check(name, value)


def _preload(name: str, value: Any) -> tuple[str, ...]:
    names = tuple(sorted(set(_texts(name, value))))
    for one in names:
        if not all(part.isidentifier() for part in one.split(".")):
            raise ValueError(f"`preload` names modules, such as `numpy`, and has {one!r}")
    return names


def _secrets(name: str, value: Any) -> tuple[str, ...]:
    return tuple(sorted({check_name(one) for one in _texts(name, value)}))


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True, False or None, is {value!r}")
    return value


def _umask(name: str, value: int) -> int:
    if not 0 <= value <= 0o777:
        raise ValueError(f"`{name}` must be permissions from 0 to 0o777, is {value}")
    return value


_CHECKS: dict[str, Check] = {
    "kind": _one_of(KINDS),
    "requirements": _requirements,
    "python_version": _unless_none(_typed('a text such as "3.11"', str, _python_version)),
    "keep_alive": _seconds(0, "from 0 to a billion"),
    "env": _env,
    "network": _unless_none(_one_of(NETWORKS)),
    "mounts": _mounts,
    "local_modules": _unless_none(_local_modules),
    "host": _unless_none(_host),
    "timeout": _unless_none(_seconds(sys.float_info.min, "more than 0 and less than a billion")),
    "retries": lambda _, value: retries.of(value),
    "setup_function": _unless_none(_setup_function),
    "machine_type": _unless_none(_typed('a text such as "M"', str, _resource)),
    **dict.fromkeys(("cpu", "memory", "gpu", "disk"), _unless_none(_resource)),
    "max_concurrency": _unless_none(_typed("a whole number", int, _concurrency)),
    "packages": _entries,
    "channels": _entries,
    "env_yml": _unless_none(_path),
    "env_dict": _unless_none(_typed("a dict as an `environment.yml` has it", Mapping, conda_options.env_dict)),
    "pip": _requirements,
    "results": _one_of(RESULTS),
    "preload": _unless_none(_preload),
    "umask": _typed("permissions such as 0o027", int, _umask),
    "grace": _seconds(0, "from 0 to 600", MOST_GRACE_SECONDS),
    "terminal": _unless_none(_switch),
    "on_done": _unless_none(_one_of(("notify",))),
    "secrets": _unless_none(_secrets),
    "serve": lambda name, value: bool(_switch(name, value)),
    "exposed_port": _unless_none(_typed("a port", int, check_port)),
    "schedule": _unless_none(_typed('a cron expression such as "0 7 * * *"', str, schedule_rules.check)),
    "timezone": _typed('a text such as "Europe/Berlin"', str),
    "overlap": _one_of(schedule_rules.OVERLAPS),
    "missed": _one_of(schedule_rules.MISSED),
}


def is_generator(function: Any) -> bool:
    """Return whether calling a function gives items one by one, async or not."""
    function = function.__func__ if isinstance(function, staticmethod) else function
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
