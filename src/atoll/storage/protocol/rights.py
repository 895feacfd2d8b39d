"""Who may ask a storage peer for what.

Whoever starts a peer tells it who its client is; the client itself has no say in it. Code inside a sandbox talks to
its peer as it likes, and so does a program of the volume's owner: what must not happen while functions run can only
be refused by the peer, and only the daemon knows which sandboxes live, and keeps new ones from starting.
"""

from __future__ import annotations

from atoll.errors import SyncError, VolumeBusy

DAEMON, PROGRAM, FUNCTION = "daemon", "program", "function"
"""The daemon itself; a program or command of the volume's owner; code inside a sandbox."""

_REFUSED = {
    DAEMON: frozenset[str](),
    # A restore replaces, and `collect` removes, what sandboxes may have open.
    PROGRAM: frozenset({"restore", "collect"}),
    # The self-test works the file system hard.
    FUNCTION: frozenset({"restore", "collect", "selftest"}),
}

MOST_MESSAGE_BYTES = {DAEMON: 1 << 30, PROGRAM: 1 << 30, FUNCTION: 64 << 20}
"""The most that the buffers of one message may add up to."""

MOST_MEMORY_BYTES = {FUNCTION: 512 << 20}
"""What a peer may use of memory. Its memory is the machine's: it is not under the limit of the worker that drives it."""

MOST_SILENT_SECONDS = {FUNCTION: 120.0}
"""How long a client may say nothing in the midst of a sync, with which it keeps others from its target."""


def confine(client: str) -> None:
    """Bound what this process, the peer of such a client, may use of memory."""
    most = MOST_MEMORY_BYTES.get(client)
    if most is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def check(client: str, request: str) -> None:
    """Refuse a request that is not for this client.

    Raises:
        VolumeBusy: a restore: it has to be asked of the daemon, which refuses it to functions.
        SyncError: another one.
    """
    if request not in _REFUSED[client]:
        return
    if request == "restore":
        raise VolumeBusy(
            "a volume is restored by the daemon, which sees to it that no function runs meanwhile",
            hint="use `atoll data restore` or `Volume.restore`, and not inside a function",
        )
    raise SyncError(f"`{request}` is not for this client", hint="use the `atoll` command outside functions")
