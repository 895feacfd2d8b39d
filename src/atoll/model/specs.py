"""Specs of functions, as values: the environment, and the worker that may run it.

All of them turn into JSON-compatible data and back (`to_data`, `from_data`), since the daemon receives them from
clients that it does not trust: `from_data` checks every type and raises `ValueError` with the field's name.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from atoll.blake2 import blake2b
from atoll.model import secret_values, spec_fields, start_variables
from atoll.model.secret_values import SecretValues

if TYPE_CHECKING:
    from atoll.model.terminal import Terminal

NETWORKS = ("none", "outbound", "host")
"""The network policies that a sandbox can have, from the strictest to the most open."""

KINDS = ("virtualenv", "conda")
"""Kinds of environments."""

_CONDA_LISTS = ("packages", "channels", "pip")

MAX_ENV_BYTES = 128 << 10
"""Of all names and values of `env` together."""

MAX_INDEX_BYTES = 384 << 10
"""Of all names and values of `index` together."""


@dataclass(frozen=True)
class EnvironmentSpec:
    """The environment that a function asks for, before anything is resolved.

    Args:
        kind: `virtualenv` or `conda`.
        requirements: PEP 508 strings, pip options such as `--index-url URL`, absolute local paths, VCS addresses;
            in the caller's order, without those that the sandbox itself satisfies.
        python_version: the version asked for (`3.11`, `3.11.7`); empty means the interpreter below.
        interpreter: absolute path of the caller's base interpreter; the one to use when its version fits.
        index: the caller's settings that decide where packages come from: variables, and contents of files
            (`environments.asked.index`). They may hold credentials: kept in memory, never logged, and written
            only with a detached call until it has ended.
        packages: of kind `conda` only: match specs in conda's words.
        channels: of kind `conda` only: names, addresses, absolute paths; empty means the default ones.
        pip: of kind `conda` only: like `requirements`, installed on top.
    """

    kind: str = "virtualenv"
    requirements: tuple[str, ...] = ()
    python_version: str = ""
    interpreter: str = ""
    index: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    packages: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    pip: tuple[str, ...] = ()

    @property
    def names_packages(self) -> bool:
        """True if there is anything to fetch."""
        return bool(self.requirements or self.packages or self.channels or self.pip)

    def to_data(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "requirements": list(self.requirements),
            "python_version": self.python_version,
            "interpreter": self.interpreter,
            "index": dict(self.index),
            **{name: list(getattr(self, name)) for name in _CONDA_LISTS if getattr(self, name)},
        }

    @classmethod
    def from_data(cls, data: Any) -> EnvironmentSpec:
        if not isinstance(data, dict):
            raise ValueError("`environment` must be an object")
        kind = spec_fields.text(data, "kind", "virtualenv")
        if kind not in KINDS:
            raise ValueError(f"`kind` must be one of {', '.join(KINDS)}, is `{kind}`")
        interpreter = spec_fields.text(data, "interpreter")
        if interpreter and not interpreter.startswith("/"):
            raise ValueError("`interpreter` must be an absolute path")
        lists = {name: spec_fields.bounded(data, name) for name in ("requirements", *_CONDA_LISTS)}
        if (
            sum(spec_fields.size_of(name, text) for name, texts in lists.items() for text in texts)
            > spec_fields.MAX_REQUIREMENTS_BYTES
        ):
            raise ValueError(f"`packages` and `pip` have more than {spec_fields.MAX_REQUIREMENTS_BYTES} bytes together")
        for name in _CONDA_LISTS if kind != "conda" else ("requirements",):
            if lists[name]:
                raise ValueError(f"`{name}` does not go with kind `{kind}`")
        index = spec_fields.pairs(data, "index")
        size = sum(spec_fields.size_of("index", name) + spec_fields.size_of("index", value) for name, value in index)
        if size > MAX_INDEX_BYTES:
            raise ValueError(f"`index` has {size} bytes, more than {MAX_INDEX_BYTES}")
        return cls(
            kind=kind,
            python_version=spec_fields.text(data, "python_version"),
            interpreter=interpreter,
            index=index,
            **lists,
        )


class Numbers(NamedTuple):
    """A function's resources in plain numbers; each is stronger than its machine type's.

    Args:
        millicores: thousandths of a core; 0 for the type's.
        memory_bytes: of its processes together; 0 for the type's.
        gpus: whole GPUs; -1 for the type's.
        card: words of the product's name that each of its GPUs has; empty for any.
        disk_bytes: the size of a `/tmp` on the disk; 0 for one in memory.
    """

    millicores: int = 0
    memory_bytes: int = 0
    gpus: int = -1
    card: str = ""
    disk_bytes: int = 0

    @property
    def limits(self) -> bool:
        """True if they bound the worker itself."""
        return bool(self.millicores or self.memory_bytes)


NO_NUMBERS = Numbers()


@dataclass(frozen=True)
class SandboxKey:
    """The key of a sandbox, shared by calls of one user, one environment and one view of the machine.

    Args:
        user: the owner's name.
        environment: the environment's key.
        network: one of `NETWORKS`.
        mounts: pairs of the path inside and the host's directory, shown read-only.
        gpus: names of the GPUs that it sees, in the machine's order.
        preload: modules that its workers have imported before their first call; None for those that earlier calls of
            the environment have imported.
        trusted: callers unpickle the results of its workers. False for functions with `results="data"` and for all that
            these call: such code shares neither processes nor learned imports with trusted code.
        start: variables that its processes are started with (see `start_variables`).
        disk_bytes: the size of its `/tmp` on the disk; 0 for one in memory.
        own: the lease that has it to itself, with a network that nobody shares; empty for one that leases share.
    """

    user: str
    environment: str
    network: str = "host"
    mounts: tuple[tuple[str, str], ...] = ()
    gpus: tuple[str, ...] = ()
    preload: tuple[str, ...] | None = None
    trusted: bool = True
    start: tuple[tuple[str, str], ...] = ()
    disk_bytes: int = 0
    own: str = ""


@dataclass(frozen=True)
class WorkerKey:
    """The key of a worker, shared by calls with one sandbox, one set of variables and one version of the modules.

    Args:
        sandbox: where the worker lives.
        env: environment variables of the call, sorted by name.
        sources: digest of the project modules that the worker has imported or may import; empty for none.
        setup: digest of the function that has prepared the worker; empty for none.
        machine_type: whose limits the worker has; empty for the host's default.
        umask: its file mode mask.
        numbers: its resources beside those of the machine type.
        secrets: further variables, by a digest of their values.
    """

    sandbox: SandboxKey
    env: tuple[tuple[str, str], ...] = ()
    sources: str = ""
    setup: str = ""
    machine_type: str = ""
    umask: int = spec_fields.UMASK
    numbers: Numbers = NO_NUMBERS
    secrets: SecretValues = secret_values.NONE

    @property
    def late_env(self) -> tuple[tuple[str, str], ...]:
        """The variables that its sandbox does not have, secrets aside: these do not change how packages are imported."""
        return tuple(pair for pair in self.env if pair not in self.sandbox.start)

    @property
    def variables(self) -> dict[str, str]:
        """All variables of its processes, with the values of secrets."""
        return {**dict(self.secrets.pairs), **dict(self.env)}


@dataclass(frozen=True)
class LeaseSpec:
    """A client's request to the daemon: a worker that can run a function.

    Args:
        environment: the environment to find or build.
        function: the function's name, for status and logs only.
        env, sources, setup: as in `WorkerKey`.
        network: a policy of `NETWORKS`; empty means `outbound` where the machine can, else `host`.
        mounts: as in `SandboxKey`.
        keep_alive_seconds: how long the worker may idle.
        machine_type: a name of `machine_types.MACHINE_TYPES`; empty for the host's default.
        max_concurrency: how many leases with the same `identity` the user may hold at a time; 0 for no bound.
        identity: which function it is, for `max_concurrency` only: its file and qualified name.
        preload: as in `SandboxKey`.
        trusted: the caller unpickles results; the daemon makes it False for calls from a sandbox that is not trusted.
        umask: as in `WorkerKey`.
        grace_seconds: how long a call may go on after it was asked to end.
        numbers: as in `WorkerKey`.
        secrets: names of the user's secrets that the function has; None for all.
        secret_values: these with their values, which the daemon adds; they never travel with the spec.
        own: the worker is alone in its sandbox and its network: it listens on ports that others may have, too.
    """

    environment: EnvironmentSpec
    function: str = ""
    env: tuple[tuple[str, str], ...] = ()
    sources: str = ""
    network: str = ""
    mounts: tuple[tuple[str, str], ...] = ()
    keep_alive_seconds: float = 10.0
    setup: str = ""
    machine_type: str = ""
    max_concurrency: int = 0
    identity: str = ""
    preload: tuple[str, ...] | None = None
    trusted: bool = True
    umask: int = spec_fields.UMASK
    grace_seconds: float = 2.0
    numbers: Numbers = NO_NUMBERS
    secrets: tuple[str, ...] | None = None
    secret_values: SecretValues = secret_values.NONE
    own: bool = False

    @cached_property
    def start(self) -> tuple[tuple[str, str], ...]:
        """The part of `env` that its sandbox must be started with."""
        return start_variables.of(self.env, preloads=bool(self.preload))

    @cached_property
    def terms(self) -> LeaseSpec:
        """The part that decides whether a lease for this spec can serve another one too."""
        return replace(self, function="", keep_alive_seconds=0.0)

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, name) for name in self.__dataclass_fields__))

    def __hash__(self) -> int:  # a look-up of a lease hashes its terms several times
        return self._hash

    def to_data(self) -> dict[str, Any]:
        return {
            "environment": self.environment.to_data(),
            "function": self.function,
            "env": dict(self.env),
            "sources": self.sources,
            "network": self.network,
            "mounts": dict(self.mounts),
            "keep_alive_seconds": self.keep_alive_seconds,
            "setup": self.setup,
            "machine_type": self.machine_type,
            "max_concurrency": self.max_concurrency,
            "identity": self.identity,
            "preload": None if self.preload is None else list(self.preload),
            "trusted": self.trusted,
            "umask": self.umask,
            "grace_seconds": self.grace_seconds,
            **({"numbers": self.numbers._asdict()} if self.numbers != NO_NUMBERS else {}),
            **({"secrets": list(self.secrets)} if self.secrets is not None else {}),
            **({"own": True} if self.own else {}),
        }

    @classmethod
    def from_data(cls, data: Any) -> LeaseSpec:
        if not isinstance(data, dict):
            raise ValueError("a lease must be an object")
        network = spec_fields.text(data, "network")
        if network and network not in NETWORKS:
            raise ValueError(f"`network` must be one of {', '.join(NETWORKS)}, is `{network}`")
        env = spec_fields.pairs(data, "env")
        if any(not name or "=" in name for name, _ in env):
            raise ValueError("`env` has a name that is empty or holds `=`")
        for name, value in env:
            start_variables.check(name, value)
        size = sum(spec_fields.size_of("env", name) + spec_fields.size_of("env", value) for name, value in env)
        if size > MAX_ENV_BYTES:
            raise ValueError(f"`env` has {size} bytes, more than {MAX_ENV_BYTES}")
        return cls(
            EnvironmentSpec.from_data(data.get("environment")),
            spec_fields.text(data, "function"),
            env,
            spec_fields.text(data, "sources"),
            network,
            spec_fields.pairs(data, "mounts"),
            spec_fields.seconds(data, "keep_alive_seconds", 10.0),
            setup=spec_fields.text(data, "setup"),
            machine_type=spec_fields.machine_type(data),
            max_concurrency=spec_fields.count(data, "max_concurrency"),
            identity=spec_fields.identity(data),
            preload=None if data.get("preload") is None else spec_fields.modules(data),
            trusted=spec_fields.flag(data, "trusted", True),
            umask=spec_fields.mode(data, "umask", spec_fields.UMASK),
            grace_seconds=spec_fields.seconds(data, "grace_seconds", 2.0, spec_fields.MOST_GRACE_SECONDS),
            numbers=Numbers(*spec_fields.numbers(data)) if "numbers" in data else NO_NUMBERS,
            secrets=None if data.get("secrets") is None else spec_fields.secrets(data),
            own=spec_fields.flag(data, "own", False),
        )


@dataclass(frozen=True)
class Call:
    """One invocation as a value: everything that is needed to run it when its caller is long gone.

    Args:
        id: unique among all calls.
        function: the function's bytes, in the format that `serializer` names.
        arguments: positional and keyword arguments, pickled; its out-of-band buffers are `buffers`.
        serializer: how `function` was made; `cloudpickle` so far.
        reusable: the function's bytes say all of its state, and that state cannot change: a worker that has
            unpickled the same bytes before may use what it has.
        sources: digest of the project modules that belong to it (the bundle itself travels beside).
        name: the function's name, for messages.
        at: when the caller made it, in seconds since the epoch; 0 for unknown.
        timeout_seconds: after which the worker is killed, from when it has the call; 0 for never.
        stream: the function gives items one by one.
        setup: the bytes of the function that prepares the worker, made like `function`; `setup_digest` names them.
        results: how results and exceptions come back: `pickle`, or `data` for plain data.
        streams: how stdout and stderr keep their order between each other: `one` where they are one stream of the
            caller's, `turns` where each write waits until the other stream has been read; empty for not at all.
        function_digest: digest of `function`, by which a worker keeps it; empty for a function that travels each time.
        texts: the texts of the files that its code is from, packed by `payload.texts.dump`; `texts_digest` names them.
        names: answers the worker's questions for names of the program (`payload.answers`); it stays with the caller.
        terminal: the caller's `model.terminal.Terminal`, which the function sees as its own; None for pipes.
    """

    id: str
    function: bytes
    arguments: bytes
    buffers: tuple[Any, ...] = ()
    serializer: str = "cloudpickle"
    reusable: bool = False
    sources: str = ""
    name: str = ""
    at: float = 0.0
    timeout_seconds: float = 0.0
    stream: bool = False
    setup: bytes = b""
    setup_digest: str = ""
    results: str = "pickle"
    streams: str = ""
    function_digest: str = ""
    texts: bytes = b""
    texts_digest: str = ""
    names: Any = field(default=None, compare=False, repr=False)
    terminal: Any = field(default=None, compare=False, repr=False)

    def again(
        self, call: str, arguments: bytes, buffers: tuple[Any, ...], at: float, terminal: Terminal | None = None
    ) -> Call:
        """Return a call of the same function with other arguments."""
        made = object.__new__(Call)
        made.__dict__.update(self.__dict__, id=call, arguments=arguments, buffers=buffers, at=at, terminal=terminal)
        return made


def digest(value: Any, length: int = 32) -> str:
    """Return a hexadecimal digest of JSON-compatible data; equal data give equal digests, in any order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return blake2b(text.encode(), digest_size=length // 2).hexdigest()


def held_bytes(value: Any) -> int:
    """Return the memory that a spec takes, its texts and tuples included."""
    if isinstance(value, (LeaseSpec, EnvironmentSpec)):
        return 500 + sum(held_bytes(getattr(value, name)) for name in value.__dataclass_fields__)
    if isinstance(value, tuple):
        return sys.getsizeof(value) + sum(map(held_bytes, value))
    return sys.getsizeof(value)
