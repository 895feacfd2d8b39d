"""The options of `@isolated` as editors and type checkers know them, each with its documentation.

Nothing imports this module at run time: `options.Options` has the same names and checks the values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict

from atoll.host.contract import Host
from atoll.sdk.retries import Retries

AnyPath: TypeAlias = str | PathLike[str]
Kind: TypeAlias = Literal["virtualenv", "conda"]
Network: TypeAlias = Literal["outbound", "none", "host"]
MachineType: TypeAlias = Literal["XS", "S", "M", "L", "XL", "GPU-T4", "GPU"]
"""The names that `local` knows; see `model.machine_types`."""


class CommonOptions(TypedDict, total=False):
    """The options of every kind of environment."""

    python_version: str | None
    """A version such as `"3.12"`; default: the caller's.

    The Python is one of this machine, or one that uv can install. Functions travel as pickles, so that a minor version
    other than the caller's is a `PythonVersionMismatch`; `atoll run FILE.py::FUNC` imports the file there instead.
    """

    keep_alive: float
    """Idle seconds after which a worker ends; default 10. With 0 each call has a worker of its own."""

    env: Mapping[str, AnyPath] | None
    """Environment variables of the call; default: none.

    A name that no variable can have is a `ValueError`.
    """

    network: Network | None
    """The network of the function; default: `"outbound"` where the machine can, else `"host"` with a notice.

    `"outbound"` is the internet and the local network, nothing of the machine itself; `"none"` is nothing; `"host"` is
    the machine's network. A policy that is given is never weakened: where it cannot be made, the call is a
    `SandboxUnavailable`.
    """

    mounts: Mapping[str, AnyPath] | Mapping[Path, AnyPath] | None
    """Directories of the machine, shown read-only and not copied: `{"/datasets": "/home/me/data"}`; default: none.

    A path inside that is not absolute, or lies in another mount, is a `ValueError`.
    """

    local_modules: Iterable[AnyPath] | None
    """Names or paths of modules that travel as source; default: found automatically.

    Found are those of the project's own directory, and from elsewhere those that the function uses and no tool installed.
    """

    host: Host | None
    """The host that runs the function; default: `atoll.local`."""

    timeout: float | None
    """Seconds that a call may take in its worker, `setup_function` included; default: no limit.

    After them the call is asked to end, with its `grace`, and raises `CallTimeout`.
    """

    retries: int | Retries | tuple[int, *tuple[type[BaseException], ...]] | None
    """Further attempts of a call, for lost workers; default 0.

    `Retries(3, on=(ConnectionError,))` makes them for exceptions of these types too. A number below 0 or above 1000 is
    a `ValueError`.
    """

    machine_type: MachineType | None
    """The size of a worker: `XS`, `S`, `M`, `L`, `XL`, `GPU-T4` or `GPU`; default: what the machine has, shared fairly.

    Another name is a `ValueError`. A smaller machine serves a larger type with what it has; a type with a GPU on a
    machine without one is a `ResourcesUnavailable`.
    """

    cpu: float | None
    """Cores, at least 0.01: `0.5`, `4`; default: those of the machine type."""

    memory: str | int | None
    """Memory of a worker: `"12GB"` (decimal), `"12GiB"` (binary) or bytes, at least 32 MB; default: the machine type's.

    A call that takes more raises `OutOfMemory`.
    """

    gpu: str | int | None
    """GPUs: a number, `"A100"` or `"A100:2"`; 0 takes the GPU from a type that has one; default: the machine type's."""

    disk: str | int | None
    """Size of a `/tmp` on the disk: `"50GB"` or bytes; default: a `/tmp` in memory."""

    max_concurrency: int | None
    """Calls of this function at a time, over all programs of the user that set a bound; default: no bound.

    Further calls wait in order. A function is known by its file and qualified name.
    """

    results: Literal["pickle", "data"]
    """The form of results; default `"pickle"`, which the caller unpickles, so that it trusts the function.

    With `"data"` results, yielded items and exceptions are plain data, decoded without running code; other values are a
    `SerializationError`.
    """

    preload: Iterable[str] | None
    """Modules that each new worker has imported already: `["numpy"]`; default: those that earlier calls have imported.

    `[]` means none.
    """

    umask: int
    """The file mode mask of the function and its children; default `0o022`."""

    grace: float
    """Seconds, from 0 to 600, that a call may go on after it was asked to end; default 2. Then it is killed."""

    terminal: bool | None
    """False for pipes; default: a terminal where the caller's output goes to one."""

    on_done: Literal["notify"] | None
    """`"notify"` tells you when a detached call is over, or one that took long; default: no notification.

    It goes to the desktop, or to the command `notifications.command` of `settings.toml`.
    """

    secrets: Iterable[str] | None
    """Names of your secrets that the function has as variables: `["HF_TOKEN"]`; default: all, with `results="data"` none.

    `atoll secrets set HF_TOKEN` sets one. `[]` means none. A name that you have not set is a `SecretUnknown`.
    """

    serve: bool
    """Whether the function may be served as a web app: requests' JSON or queries are its arguments; default: `False`.

    `atoll function serve FILE FUNC`, or `FUNC.serve(alias="NAME")`, registers it at a server. The environment gets FastAPI and
    uvicorn.
    """

    exposed_port: int | None
    """The port of a server that the function starts itself, and never returns from; default: it starts none.

    Requests at the endpoint's address reach that port of the sandbox, for any protocol over HTTP, WebSockets included.
    """

    schedule: str | None
    """A cron expression, such as `"0 7 * * *"`; default: none. `atoll deploy FILE` has the server call the function then.

    The function has no required arguments. A sixth field, in front, has seconds. Other texts are a `ValueError`.
    """

    timezone: str
    """The time zone of `schedule`, such as `"Europe/Berlin"`; default `"UTC"`."""

    overlap: Literal["skip", "queue", "allow"]
    """A run whose predecessor has not ended is left out, waits for it (`"queue"`) or runs beside it; default `"skip"`."""

    missed: Literal["skip", "once", "all"]
    """Runs that the server missed by more than a minute are left out, made up by one, or by all; default `"skip"`.

    `"all"` begins the newest 100 of them.
    """


class VirtualenvOptions(CommonOptions, total=False):
    """The options of a function whose packages come from the package index."""

    requirements: AnyPath | Iterable[AnyPath] | None
    """Packages: `["numpy>=2", "torch"]`, or a file of the project; default: none.

    A list has PEP 508 texts, files (`-r FILE`), pip options, local paths and VCS addresses. A file is
    `"requirements.txt"`, `"pyproject.toml"`, `"uv.lock"` or `"pylock.toml"`. Packages that cannot be installed are an
    `EnvironmentBuildError` of the call.
    """


class CondaOptions(CommonOptions, total=False):
    """The options of a function whose packages come from conda's channels."""

    packages: Iterable[str] | None
    """Conda only. Match specs such as `"numpy>=2"`, `"pytorch=2.5=*cuda*"`; default: none."""

    channels: Iterable[str] | None
    """Conda only. Names, addresses or directories; default `conda-forge` and `pytorch`.

    A package comes from the first channel that has it.
    """

    env_yml: AnyPath | None
    """Conda only. The path of an `environment.yml`, read at each call; default: none."""

    env_dict: Mapping[str, Any] | None
    """Conda only. The contents of such a file; default: none. Give one of `env_yml` and `env_dict`."""

    pip: AnyPath | Iterable[AnyPath] | None
    """Conda only. Like `requirements` of a virtual environment, installed on top of the packages; default: none."""


class ChangedOptions(VirtualenvOptions, CondaOptions, total=False):
    """The options that `IsolatedFunction.on` may change."""

    kind: Kind
    """`"virtualenv"` or `"conda"`."""
