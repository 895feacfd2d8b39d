"""Paths and options: the only module that reads the process's environment.

Options come from `settings.toml` below `ATOLL_HOME`; each has a default that suits a workstation. Units are in the
names.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from atoll import ownership
from atoll.errors import StateUntrusted, StateUnusable
from atoll.model.options.cluster import ClusterSettings
from atoll.model.options.environments import EnvironmentsSettings
from atoll.model.options.queue import QueueSettings, WebhooksSettings
from atoll.model.options.ray import RaySettings
from atoll.model.options.storage import StorageSettings
from atoll.model.options.users import UsersSettings

_INDEX_NAMES = (
    "UV_DEFAULT_INDEX UV_INDEX UV_INDEX_URL UV_EXTRA_INDEX_URL UV_FIND_LINKS UV_INDEX_STRATEGY "
    "UV_KEYRING_PROVIDER UV_OFFLINE UV_NATIVE_TLS UV_SYSTEM_CERTS UV_INSECURE_HOST UV_HTTP_TIMEOUT "
    "UV_EXCLUDE_NEWER UV_PRERELEASE UV_CONFIG_FILE PIP_CONFIG_FILE PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS "
    "SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY http_proxy https_proxy all_proxy "
    "no_proxy NETRC CONDA_OVERRIDE_CUDA CONDA_OVERRIDE_GLIBC CONDA_OVERRIDE_ARCHSPEC UV_PYTHON_DOWNLOADS "
    "UV_PYTHON_INSTALL_MIRROR UV_PYTHON_DOWNLOADS_JSON_URL"
)
INDEX_VARIABLES = tuple(_INDEX_NAMES.split())
"""The variables of the caller that decide where packages come from and how that connection is trusted."""

INDEX_FILE_VARIABLES = (
    "UV_CONFIG_FILE",
    "PIP_CONFIG_FILE",
    "NETRC",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
)
"""Those that name a file of the caller: its content is sent, never its path."""


@dataclass(frozen=True)
class PoolSettings:
    """The embedded daemon's share of the machine.

    Args:
        slots: calls that compute at the same time; 0 means one for each core that this process may use.
        max_workers: live workers over all sandboxes, idle and nested ones included; 0 means by memory.
        max_sandboxes: live sandboxes; 0 means by memory.
        worker_memory_bytes: the most that the processes of one worker without a machine type may use; 0 means nine
            tenths of the machine.
        daemon_idle_seconds: how long the daemon stays with nothing to do.
        worker_processes: processes and threads of one worker.
        memory_bytes: limit of all workers with a machine type together; 0 means nine tenths of the machine.
        gpus: `auto` for the NVIDIA devices that are found, `none`, or the paths of the devices to use, by commas.
    """

    slots: int = 0
    max_workers: int = 0
    max_sandboxes: int = 0
    worker_memory_bytes: int = 0
    daemon_idle_seconds: float = 300.0
    worker_processes: int = 4096
    gpus: str = "auto"
    memory_bytes: int = 0


@dataclass(frozen=True)
class SandboxSettings:
    """Sizes and programs of every sandbox.

    Args:
        tmp_bytes: size of `/tmp` and of the home directory, each; memory of the machine while it is used.
        shm_bytes: size of `/dev/shm`.
        overhead_bytes: memory of a sandbox beside its workers: packages that are imported ahead, and files in `/tmp`
            and `/dev/shm` that ended workers have left; 0 means 1 GiB, or a quarter of a smaller machine.
        first_uid, uid_count: host uids for functions when the daemon runs as root; 0 means found on this machine.
        bwrap: path of the bubblewrap program; empty means the newest of the packaged one and the system's.
        pasta: path of the program that carries the packets of outbound networks; empty means the system's.
    """

    tmp_bytes: int = 4 << 30
    shm_bytes: int = 4 << 30
    overhead_bytes: int = 0
    first_uid: int = 0
    uid_count: int = 0
    bwrap: str = ""
    pasta: str = ""


@dataclass(frozen=True)
class RecordsSettings:
    """Limits of the records of finished calls.

    Args:
        keep_days: for how long; 0 keeps nothing.
        max_bytes: the most that records and outputs take on the disk; the oldest of the users with the most go first.
    """

    keep_days: float = 30.0
    max_bytes: int = 256 << 20


@dataclass(frozen=True)
class DetachedSettings:
    """Limits of detached calls.

    Args:
        keep_days: how long a call is kept after its end.
        max_bytes: the most that all calls, outputs and results take on the disk; a call that does not fit is refused.
        call_bytes: the most of the arguments of one `spawn` or `spawn_map`, and of one result.
        output_bytes: the most of one call's output; of a longer one the middle is left out.
        at_a_time: calls that run or wait for a worker at a time; further ones wait on the disk. 0 means 256, fewer
            where arguments are large or this process may have few descriptors.
    """

    keep_days: float = 14.0
    max_bytes: int = 20 << 30
    call_bytes: int = 4 << 30
    output_bytes: int = 32 << 20
    at_a_time: int = 0


@dataclass(frozen=True)
class NotificationsSettings:
    """Rules for telling somebody that a call is over: with the option `on_done`, or `atoll run --notify`.

    Args:
        command: a program and its arguments, run without a shell: it reads the call as JSON on its standard input, and
            has variables such as `ATOLL_CALL_OUTCOME`. Empty means a notification of the desktop.
        after_seconds: calls that a program waits for are told of when they took at least so long.
        seconds: the most that the command may take.
    """

    command: tuple[str, ...] = ()
    after_seconds: float = 10.0
    seconds: float = 10.0


@dataclass(frozen=True)
class SecretsSettings:
    """The key that encrypts users' secrets.

    Args:
        key_file: its path, mode 0600; empty for `secrets/key` below the state directory.
        key_command: a program and its arguments, run without a shell, that prints the lines of a key file instead.
    """

    key_file: str = ""
    key_command: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """Atoll's options, and the paths of its state."""

    home: Path
    pool: PoolSettings = field(default_factory=PoolSettings)
    sandbox: SandboxSettings = field(default_factory=SandboxSettings)
    records: RecordsSettings = field(default_factory=RecordsSettings)
    environments: EnvironmentsSettings = field(default_factory=EnvironmentsSettings)
    detached: DetachedSettings = field(default_factory=DetachedSettings)
    notifications: NotificationsSettings = field(default_factory=NotificationsSettings)
    secrets: SecretsSettings = field(default_factory=SecretsSettings)
    users: UsersSettings = field(default_factory=UsersSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)
    ray: RaySettings = field(default_factory=RaySettings)
    queue: QueueSettings = field(default_factory=QueueSettings)
    webhooks: WebhooksSettings = field(default_factory=WebhooksSettings)
    mistake: str = ""
    """The message for a file that is not read, so that all options have their defaults; see `usable`."""

    @property
    def run_directory(self) -> Path:
        """Sockets, locks and process ids of the running daemon; private to the owner."""
        return self.home / "run"

    @property
    def socket_path(self) -> Path:
        """The daemon's socket; may be longer than a socket's name can be (see `wire.channel`)."""
        return self.run_directory / "daemon.sock"

    @property
    def logs_directory(self) -> Path:
        return self.home / "logs"

    @property
    def records_directory(self) -> Path:
        """Records of finished calls."""
        return self.home / "records"

    @property
    def detached_directory(self) -> Path:
        """Detached calls: arguments, outputs, results."""
        return self.home / "detached"

    @property
    def environments_directory(self) -> Path:
        """Built environments, their records, and the package cache that they share files with."""
        return self.home / "environments"

    @property
    def volumes_directory(self) -> Path:
        """One directory per user; see `storage.volume`."""
        return self.storage.root(self.home) / "volumes"

    @property
    def agents_directory(self) -> Path:
        """One copy of agent, SDK and cloudpickle per version of the package."""
        return self.home / "agents"


MOST_FILE_BYTES = 64 << 10
"""The most of `settings.toml`: the daemon reads it while it serves."""

GROUPS: Mapping[str, type[Any]] = {
    "pool": PoolSettings,
    "sandbox": SandboxSettings,
    "records": RecordsSettings,
    "environments": EnvironmentsSettings,
    "detached": DetachedSettings,
    "notifications": NotificationsSettings,
    "secrets": SecretsSettings,
    "users": UsersSettings,
    "cluster": ClusterSettings,
    "storage": StorageSettings,
    "ray": RaySettings,
    "queue": QueueSettings,
    "webhooks": WebhooksSettings,
}
"""The tables of `settings.toml`."""


def default_home() -> Path:
    """Return `ATOLL_HOME`, or the platform's user data directory with `atoll` below it."""
    if given := os.environ.get("ATOLL_HOME"):
        return Path(os.path.abspath(os.path.expanduser(given)))
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "atoll"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "atoll"
    data = os.environ.get("XDG_DATA_HOME") or ""
    return (Path(data) if os.path.isabs(data) else Path.home() / ".local" / "share") / "atoll"


def home_variables() -> tuple[Any, Any]:
    """Return the variables that `default_home` follows: cheap, to notice that they have changed."""
    variables = getattr(os.environ, "_data", None)  # CPython's own dictionary: `environ.get` decodes, for 1.5 us each
    if type(variables) is dict and os.name == "posix":
        return variables.get(b"ATOLL_HOME"), variables.get(b"XDG_DATA_HOME")
    return os.environ.get("ATOLL_HOME"), os.environ.get("XDG_DATA_HOME")


def known_variables(names: tuple[bytes, ...]) -> tuple[Any, ...]:
    """Return some variables, as cheaply as `home_variables`."""
    variables = getattr(os.environ, "_data", None)
    if type(variables) is dict and os.name == "posix":
        return tuple(map(variables.get, names))
    return tuple(os.environ.get(name.decode()) for name in names)


def load(home: Path | None = None) -> Settings:
    """Read the settings below `home` (default: `default_home`).

    Raises:
        StateUnusable: the file cannot be read, is not TOML, or has an unknown or wrongly typed option.
        StateUntrusted: another user can change it, or the state directory.
    """
    home = default_home() if home is None else home
    path = home / "settings.toml"
    try:
        data = ownership.read(path, MOST_FILE_BYTES + 1)
        if len(data) > MOST_FILE_BYTES:
            raise StateUnusable(f"`{path}` has more than {MOST_FILE_BYTES:,} bytes", hint="mend or remove the file")
        text = data.decode("utf-8")
    except FileNotFoundError:
        return Settings(home)
    except StateUnusable:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise StateUnusable(f"cannot read `{path}`: {error}", hint="mend or remove the file") from error
    from atoll import settings_file  # most have no such file

    return Settings(home, **settings_file.parse(path, text, GROUPS))


def usable(home: Path) -> Settings:
    """Read the settings as `load` does; a file with a mistake leaves the defaults, and `mistake` names it.

    Clients need little but paths: the daemon alone refuses to start with such a file.

    Raises:
        StateUntrusted: as `load`.
    """
    try:
        return load(home)
    except StateUntrusted:
        raise
    except StateUnusable as error:
        return Settings(home, mistake=f"{error.message}; {error.hint}")


def to_data(options: Settings) -> dict[str, dict[str, Any]]:
    """Return the options as JSON-compatible data, for another process of the same version."""
    return {name: asdict(getattr(options, name)) for name in GROUPS}


def from_data(home: Path, groups: Mapping[str, Mapping[str, Any]]) -> Settings:
    """Return the settings that `to_data` was given."""
    made = {
        name: {key: tuple(one) if isinstance(one, list) else one for key, one in groups[name].items()}
        for name in GROUPS
    }
    return Settings(home, **{name: cls(**made[name]) for name, cls in GROUPS.items()})


def check_state(options: Settings) -> None:
    """Check, before anything below the state directory is used, that no other user can change it, or has.

    Raises:
        StateUntrusted: another user can, or has.
    """
    with ownership.directory(options.home) as home:
        for directory in (
            options.run_directory,
            options.logs_directory,
            options.records_directory,
            options.detached_directory,
            options.environments_directory,
            options.home / "volumes",  # a shared file system is checked when it is mounted
            options.agents_directory,
        ):
            with contextlib.suppress(FileNotFoundError), home.enter(directory.name) as found:
                if directory == options.agents_directory:
                    found.check_entries()  # sandboxes run their code
        with contextlib.suppress(FileNotFoundError):
            os.close(home.open("identities.json", os.O_RDONLY))


def index_variables(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return those of `INDEX_VARIABLES` that the caller's environment sets and that are not empty."""
    source = os.environ if environment is None else environment
    return {name: source[name] for name in INDEX_VARIABLES if source.get(name)}


def user_config_directory() -> Path:
    """Return the user's configuration directory (`XDG_CONFIG_HOME`, else `~/.config`)."""
    given = os.environ.get("XDG_CONFIG_HOME") or ""
    try:
        return Path(given) if os.path.isabs(given) else Path.home() / ".config"
    except RuntimeError:  # a uid that the machine does not know, without `HOME`: it has stored nothing
        return Path("/nonexistent")


def search_path() -> str:
    """Return the caller's `PATH`, or the usual system directories."""
    return os.environ.get("PATH") or "/usr/local/bin:/usr/bin:/bin"


def variable(name: str) -> str:
    """Return a variable of the caller's environment, empty where it is not set; for files that name variables."""
    return os.environ.get(name, "")


def is_empty(name: str) -> bool:
    """Return whether a variable is set, and empty."""
    return os.environ.get(name) == ""


def terminal() -> tuple[bool, bool]:
    """Return whether the terminal can move its cursor (`TERM`), and whether colours are wanted (`NO_COLOR`)."""
    return os.environ.get("TERM", "") not in ("", "dumb"), not os.environ.get("NO_COLOR")


def display() -> str:
    """Return `ATOLL_DISPLAY`: `auto`, `plain` or `none`; empty where it is not set."""
    return os.environ.get("ATOLL_DISPLAY", "")


def debugs() -> bool:
    """Return whether tracebacks show Atoll's own frames (`ATOLL_DEBUG`)."""
    return os.environ.get("ATOLL_DEBUG", "0") not in ("", "0")


def daemon_environment() -> dict[str, str]:
    """Return the daemon's environment: the user and the search path, nothing else."""
    names = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")
    return {name: os.environ[name] for name in (*names, "XDG_RUNTIME_DIR") if name in os.environ}


def environment_with(variables: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with further variables, for a command of the owner's."""
    return {**os.environ, **variables}
