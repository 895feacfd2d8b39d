"""Rights of callers, and the way from a wish to a lease, whatever the transport.

A caller is a user with rights. Code inside a sandbox calls as the sandbox's user, and never with more than the function
around it has: its interpreter, its package indexes without their credentials, at most its network and its trust. Rights
are values: no rule asks who the local user is. The daemon opens a path that a caller names only for a caller whose uid
the kernel has proven to be the daemon's own, or root's: such a path is opened, and such an interpreter runs, with no
more rights than the caller has. Everything else of a caller's files comes as contents (`host.index_settings`).

A server of many users is the owner's client, and asks in the name of one of them: its opening message has, beside
`type`, `"as": {"user": ID, "admin": BOOL, "limits": {...}}`. `ID` is opaque (ASCII letters, digits, `_` and `-`, at most
64). With `admin` the user sees status and calls of all users, and may cancel calls and end the daemon; paths,
interpreters and mounts of the machine stay closed. `limits` are some of the numbers of `users.UserLimits`: `weight`,
`workers`, `connections`, `builds`, `storage_clients`, `request_bytes`; 0 or none means the setting of that name. The
limits of the latest message count for all that the user has here. Nothing else may be in it.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from atoll import errors
from atoll.daemon.claims import MAX_CLIENT
from atoll.daemon.secrets import requests as secrets
from atoll.daemon.services import Services
from atoll.daemon.users import UserLimits, read_limits
from atoll.engine.accounts import Opener
from atoll.engine.contract import EngineLease
from atoll.environments.asked import credentials, requirements, uploaded
from atoll.environments.build import recipes
from atoll.environments.built.records import Environment
from atoll.environments.store import EnvironmentStore
from atoll.environments.stores import UserEnvironments
from atoll.model.specs import EnvironmentSpec, LeaseSpec
from atoll.node.builds import policy_of_builds, user_of_builds
from atoll.sandbox.network.networks import within
from atoll.settings import INDEX_FILE_VARIABLES
from atoll.storage.protocol.replies import FUNCTION, PROGRAM, REMOTE

MAX_NESTED_NAMES = 200
MAX_NESTED_CHARACTERS = 32 << 10
"""Requirements, packages and channels that a function may give: they are read on the daemon's loop, 4 µs a character."""

MAX_REMOTE_CHARACTERS = 512 << 10
"""The same of a user of a server, whose lists are read in a thread: 200 packages with hashes of 30 files each."""

TOKENS_A_CHARACTER = 0.5
"""The price of their reading: one worker takes less than 2 % of the loop's time for it."""

MOST_NESTED_GRACE_SECONDS = 60.0
"""The longest grace of a call that a function makes: its code keeps a slot for so long after its client has ended."""

T = TypeVar("T")

_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Caller:
    """A user who asks, with their rights.

    Args:
        user: an opaque id, also the name of the volume's directory: ASCII letters, digits, `_` and `-`.
        parent: the worker whose code asks; None outside functions.
        may_name_host_paths: mounts, and local files as requirements and package indexes.
        may_choose_interpreter: the path of a Python of this machine, which the daemon runs.
        may_administer: everybody's status and environments, and the daemon's end.
        network: the most open policy that its functions may have.
        sandbox: the sandbox of `parent`.
        keeps: it is the keeper, whose calls are those of other programs of the user.
        relayed: a server passes its calls on, as bytes in a stream.
        remote: a user of a server, whom nothing of the machine belongs to.
        limits: of such a user.

    Raises ValueError: `user` is no such id.
    """

    user: str
    parent: str | None = None
    may_name_host_paths: bool = False
    may_choose_interpreter: bool = False
    may_administer: bool = False
    network: str = "outbound"
    sandbox: str = ""
    keeps: bool = False
    relayed: bool = False
    remote: bool = False
    limits: UserLimits = field(default_factory=UserLimits)

    def __post_init__(self) -> None:
        if not _USER.fullmatch(self.user):
            raise ValueError(f"`{self.user}` cannot be a user's id")

    @property
    def nested(self) -> bool:
        """True for code inside a sandbox."""
        return self.parent is not None

    @property
    def opener(self) -> Opener:
        """The code that asks, for the accounts; of a nested caller."""
        return Opener(self.user, self.sandbox, self.parent or "")

    @property
    def storage_client(self) -> str:
        """The kind of client that a storage peer is told of."""
        return FUNCTION if self.nested else REMOTE if self.remote else PROGRAM


def owner(user: str) -> Caller:
    """Return the caller with every right: the owner of the machine's daemon."""
    return Caller(user, may_name_host_paths=True, may_choose_interpreter=True, may_administer=True, network="host")


def on_behalf(caller: Caller, data: object) -> Caller:
    """Return the user in whose name the owner's server, or the keeper, asks: a caller with a user's rights.

    Args:
        data: as this module describes it.

    Raises:
        ValueError: it is no such object.
        ResourcesUnavailable: the caller is not the machine's owner.
    """
    check_owner(caller, "ask for another user")
    if not isinstance(data, dict) or not set(data) <= {"user", "admin", "limits"}:
        raise ValueError("`as` names a user")
    user, admin = data.get("user"), data.get("admin", False)
    if not isinstance(user, str) or not isinstance(admin, bool):
        raise ValueError("`as` names a user")
    if user == caller.user:
        if not caller.keeps:
            raise ValueError(f"`{user}` is the node's owner, and no user of a server")
        return caller
    return Caller(
        user,
        may_administer=admin,
        keeps=caller.keeps,
        relayed=not caller.keeps,
        remote=True,
        limits=read_limits(data.get("limits")),
    )


def check_owner(caller: Caller, wish: str) -> None:
    """Refuse everybody but the machine's owner: functions, and other users.

    Raises:
        ResourcesUnavailable: the caller is one of them.
    """
    if caller.nested:
        raise errors.ResourcesUnavailable(f"a function cannot {wish}", hint="do it from the program itself")
    if not caller.may_administer:  # the keeper's calls have the owner's rights
        raise errors.ResourcesUnavailable(f"this user cannot {wish} here", hint="ask the machine's owner")


def check_outside(caller: Caller, what: str) -> None:
    """Refuse code inside a sandbox.

    Raises:
        ResourcesUnavailable: always then.
    """
    if caller.nested:
        raise errors.ResourcesUnavailable(f"a function cannot {what}", hint="run it from the command line")


@dataclass(frozen=True)
class Listener:
    """A client that waits, as `ask` tells it.

    Args:
        progress: takes a line about a build.
        notice: takes a line that the user should read once.
    """

    progress: Callable[[str], None]
    notice: Callable[[str], None]


async def ask(services: Services, caller: Caller, spec: LeaseSpec, client: str, listener: Listener) -> EngineLease:
    """Check a wish, build its environment and ask the engine for a worker.

    Args:
        client: see `read_client`.

    Raises:
        ResourcesUnavailable, SandboxUnavailable: it may not ask for that, or the machine can never grant it.
        EnvironmentBuildError, DiskFull, StateUnusable: as `EnvironmentStore.ensure`.
    """
    asked = spec
    spec = await in_turn(services, caller, spec.environment, lambda: checked(services, caller, asked))
    spec = await secrets.added(services.secrets, services.engine, caller, spec)
    await services.node.quotas.before_call(caller.user, listener.notice)
    services.node.expect_network(spec.network, caller.user, trusted=spec.trusted)
    services.node.machine.allot(spec.machine_type, spec.numbers, listener.notice)
    await services.node.tmp_disks.check(spec.numbers.disk_bytes)
    environment = await build(services, caller, spec.environment, listener.progress)
    spec = replace(spec, network=await services.node.network(spec.network, listener.notice, own=spec.own))
    share = services.users.share(caller.user)
    return services.engine.ask(caller.user, spec, environment, caller.parent, client, caller.relayed, share)


def environments_of(services: Services, caller: Caller) -> EnvironmentStore | UserEnvironments:
    """Return the environments that a caller sees: the machine's, or those of a user of a server."""
    users, user = services.users, caller.user
    return services.node.stores.of(user, users.builds(user)) if users.serves(user) else services.node.environments


def confine_builds(services: Services, caller: Caller) -> None:
    """Give builds of this task no more of the network than the caller's functions have."""
    if caller.nested or caller.network != "host":
        policy_of_builds.set(_outer_network(services, caller))
    user_of_builds.set(caller.user if services.users.serves(caller.user) else "")


async def build(
    services: Services, caller: Caller, spec: EnvironmentSpec, progress: Callable[[str], None]
) -> Environment:
    """Return the environment of a spec that `checked` has returned; built if it is absent."""
    confine_builds(services, caller)
    store = environments_of(services, caller)
    return await store.ensure(spec, progress, nested=caller.nested, worker=caller.parent or "")


def checked(services: Services, caller: Caller, spec: LeaseSpec) -> LeaseSpec:
    """Return the spec within the caller's rights.

    Raises:
        ResourcesUnavailable, EnvironmentBuildError: the caller may not ask for it.
    """
    if caller.may_name_host_paths:
        for target, source in spec.mounts:
            _check_mount(target, source)
    elif spec.mounts and caller.nested:
        raise errors.ResourcesUnavailable(
            "a function called from inside a sandbox cannot have `mounts`",
            hint="call it from the program itself, or put the data below `/data`",
        )
    elif spec.mounts:
        raise errors.ResourcesUnavailable("`mounts` are not for this user", hint="put the data below `/data`")
    environment = checked_environment(services, caller, spec.environment)
    # Else a function could call its own code as a trusted one, beside the functions whose results are unpickled.
    trusted = spec.trusted and (caller.parent is None or services.engine.is_trusted(caller.parent))
    network = spec.network
    if caller.nested or caller.network != "host":
        network = within(network, _outer_network(services, caller), inside=caller.nested)
    grace_seconds = min(spec.grace_seconds, MOST_NESTED_GRACE_SECONDS) if caller.nested else spec.grace_seconds
    return replace(spec, environment=environment, network=network, trusted=trusted, grace_seconds=grace_seconds)


async def prepared(
    services: Services, caller: Caller, asked: LeaseSpec, progress: Callable[[str], None]
) -> tuple[LeaseSpec, Environment]:
    """Return a spec within the caller's rights, and its environment; see `checked` and `build`."""
    spec = await in_turn(services, caller, asked.environment, lambda: checked(services, caller, asked))
    return spec, await build(services, caller, spec.environment, progress)


async def in_turn(services: Services, caller: Caller, spec: EnvironmentSpec, check: Callable[[], T]) -> T:
    """Return what a check of a spec gives; the requirements of a server's user are read beside the loop, in turn.

    Raises:
        ResourcesUnavailable: they are more than such a user may give.
        AtollError: as the check.
    """
    if not caller.remote or caller.nested or not spec.names_packages:
        return check()
    size = sum(len(name) for names in _lists(spec) for name in names)
    if size > MAX_REMOTE_CHARACTERS:
        raise errors.ResourcesUnavailable(
            f"the requirements have {size} characters, and the server takes {MAX_REMOTE_CHARACTERS}",
            hint="leave out the packages that others bring along",
        )

    def read() -> T:
        found = check()
        environment = found.environment if isinstance(found, LeaseSpec) else found
        if isinstance(environment, EnvironmentSpec):  # with places of uploads it is another list
            recipes.names_addresses(environment)
        return found

    return await services.users.readings.run(caller.user, read)


def checked_environment(services: Services, caller: Caller, spec: EnvironmentSpec) -> EnvironmentSpec:
    """Return the environment's spec within the caller's rights; see `checked`."""
    if caller.parent is not None:
        _refuse_long_lists(spec, services.engine.environment_of(caller.parent))
    uploads: EnvironmentSpec | None = None
    if caller.remote and caller.parent is None and uploaded.names_uploads(spec):  # detached calls have them, too
        spec, uploads = uploaded.split(spec)
    if not caller.may_name_host_paths:
        recipes.refuse_host_paths(spec)
    if not caller.may_choose_interpreter:
        spec = replace(spec, interpreter="")
    if caller.remote and (named := [name for name, _ in spec.index if name in INDEX_FILE_VARIABLES]):
        raise errors.EnvironmentBuildError(
            f"`{named[0]}` names a file of the caller's machine, which the server does not open",
            hint="upgrade the client: it sends the file's contents",
        )
    if caller.parent is not None:
        return _within_parent(services, spec, services.engine.environment_of(caller.parent))
    if not caller.may_name_host_paths:
        needed = bool(spec.requirements or spec.packages or spec.pip)
        spec = replace(spec, index=credentials.refuse_host_paths(spec.index, needed=needed))
    if uploads is not None:
        found = uploaded.resolved(uploads, uploaded.of_user(services.settings, caller.user))
        spec = uploaded.joined(spec, found)
    return spec


def _lists(spec: EnvironmentSpec) -> tuple[tuple[str, ...], ...]:
    return spec.requirements, spec.packages, spec.channels, spec.pip


def reading_tokens(spec: EnvironmentSpec) -> float:
    """Return the tokens that a function pays for the reading of its requirements, which takes the loop's time."""
    unread = [names for names in (spec.requirements, spec.pip) if not requirements.is_known(names)]
    size = sum(len(name) for names in (*unread, spec.packages, spec.channels) for name in names)
    return min(size, MAX_NESTED_CHARACTERS) * TOKENS_A_CHARACTER


def _refuse_long_lists(spec: EnvironmentSpec, outer: EnvironmentSpec) -> None:
    """Refuse more requirements than functions may give, but for those that the calling function has itself."""
    names = [name for names in _lists(spec) for name in names]
    count, size = len(names), sum(map(len, names))
    if (count > MAX_NESTED_NAMES or size > MAX_NESTED_CHARACTERS) and _lists(spec) != _lists(outer):
        raise errors.ResourcesUnavailable(
            f"a function called from inside a sandbox has {count} requirements with {size} characters, and may have "
            f"{MAX_NESTED_NAMES} with {MAX_NESTED_CHARACTERS}",
            hint="leave out the packages that others bring along, or call it from the program itself",
        )


def _within_parent(services: Services, spec: EnvironmentSpec, outer: EnvironmentSpec) -> EnvironmentSpec:
    """Return a function's request with the Python that its callers had asked for, and the indexes of its program.

    The credentials of the indexes would show the function what only they let in. It may ask for its own environment,
    which it has anyway; the owner can allow all of them.
    """
    version = spec.python_version or outer.python_version
    spec = replace(spec, interpreter=outer.interpreter, index=outer.index, python_version=version)
    if (local := dict(outer.index).get(credentials.LOCAL)) and (spec.requirements or spec.pip) and spec != outer:
        raise errors.EnvironmentBuildError(
            f"an index setting of the program names a place of its machine ({local}), which its functions do not have",
            hint="leave the setting out, or give the calling function a requirement: directories are uploaded with it",
        )
    allowed = services.settings.environments.functions_use_credentials and not recipes.names_addresses(spec)
    if spec == outer or allowed:
        return spec
    return replace(spec, index=credentials.without_credentials(spec.index))


def _outer_network(services: Services, caller: Caller) -> str:
    return services.engine.network_of(caller.parent) if caller.parent is not None else caller.network


async def dial(services: Services, caller: Caller, worker: object, port: object) -> socket.socket:
    """Connect to a port inside the sandbox of a worker that serves a lease of this user.

    Raises:
        ValueError: `worker` is no text, or `port` no number from 1 to 65535.
        ResourcesUnavailable: a function asks.
        WorkerDied: no worker of this user has that id and a lease.
        PortUnreachable: nothing listens there.
    """
    if caller.nested:
        raise errors.ResourcesUnavailable("a function cannot dial a sandbox", hint="dial from the program itself")
    if not isinstance(worker, str) or type(port) is not int or not 0 < port < 1 << 16:
        raise ValueError("`dial` names a worker and a port from 1 to 65535")
    lease = services.engine.find(caller.user, worker)
    if lease is None:
        raise errors.WorkerDied(f"the worker `{worker[:MAX_CLIENT]}` has ended", hint="call the function again")
    return await lease.dial(port)


RESERVED_TARGETS = ("/opt/atoll", "/data", "/proc", "/dev", "/sys", "/etc", "/usr", "/bin", "/lib", "/lib64", "/sbin")


def _check_mount(target: str, source: str) -> None:
    path = os.path.normpath(target)
    if not target.startswith("/") or path == "/" or ".." in target.split("/"):
        raise errors.ResourcesUnavailable(
            f"mount `{target}` must be an absolute path below `/`", hint="for example `/datasets`"
        )
    if any(path == taken or path.startswith(taken + "/") for taken in (*RESERVED_TARGETS, "/tmp", "/run")):
        raise errors.ResourcesUnavailable(
            f"mount `{target}` would hide a part of the sandbox", hint="choose a path of its own, such as `/datasets`"
        )
    if not os.path.isabs(source) or not os.path.isdir(source):
        raise errors.ResourcesUnavailable(
            f"mount `{target}`: `{source}` is not a directory of this machine", hint="give an existing directory"
        )
