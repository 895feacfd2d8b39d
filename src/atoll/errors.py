"""The exceptions that Atoll raises, by who must act.

Each error has a message about the event, and the next step in `hint`. `code` is stable: programs and
other processes may rely on it. Between processes an error travels as data (`to_data`, `from_data`), never as a
pickle, since the daemon does not unpickle.
"""

from __future__ import annotations

import errno
from typing import Any, ClassVar


class AtollError(Exception):
    """The root of every error that Atoll itself raises.

    Args:
        message: the event; lower case, no full stop, values in backticks.
        hint: the reader's next step; empty if there is none.
        details: values of JSON's types that belong to the error (exit status, versions, paths).
    """

    code: ClassVar[str] = "atoll_error"

    def __init__(self, message: str = "", *, hint: str = "", **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details

    def __str__(self) -> str:
        """Return message and hint; text of others in them cannot act on a terminal, `message` has it as it came."""
        from atoll.terminal_text import lines

        return lines(f"{self.message}\nhint: {self.hint}" if self.hint else self.message)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.hint, self.details, self.__dict__)

    def to_data(self) -> dict[str, Any]:
        """Return the error as JSON-compatible data; `from_data` is its inverse."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "details": self.details}


def _rebuild(
    cls: type[AtollError], message: str, hint: str, details: dict[str, Any], state: dict[str, Any]
) -> AtollError:
    error = cls(message, hint=hint, **details)
    error.__dict__.update(state)
    return error


def _fields(error: BaseException) -> dict[str, Any]:
    """Return the attributes of an error, whatever its type's own access to them does."""
    found: dict[str, Any] = vars(BaseException)["__dict__"].__get__(error)
    return found


def call_id(error: BaseException) -> str:
    """Return the id of the call that an error came from, the function's own exceptions included; empty for none."""
    found = _fields(error).get("__atoll_call__", "")
    return found if isinstance(found, str) else ""


def set_call_id(error: BaseException, call: str) -> None:
    """Note which call an error came from; the innermost call stays."""
    if not call_id(error):
        _fields(error)["__atoll_call__"] = call


# --- the caller's to mend ---------------------------------------------------------------------------------------


class CallerError(AtollError):
    """Something in the caller's program or input must change."""

    code = "caller_error"


class EnvironmentBuildError(CallerError):
    """Requirements do not exist, conflict or fail to build; `log` has the builder's words."""

    code = "environment_build"

    @property
    def log(self) -> str:
        """The last lines that the builder printed."""
        return str(self.details.get("log", ""))


class SerializationError(CallerError):
    """An argument, a result or an exception cannot travel between the processes."""

    code = "serialization"


class RemoteError(CallerError):
    """The function raised an exception of a type that this process cannot import."""

    code = "remote"

    @property
    def type_name(self) -> str:
        """The qualified name of the exception's type, as the worker knows it."""
        return str(self.details.get("type_name", ""))

    @property
    def traceback_text(self) -> str:
        """The remote traceback, formatted where it happened."""
        return str(self.details.get("traceback_text", ""))


class WorkerDied(CallerError):
    """The worker ended before it answered the call."""

    code = "worker_died"

    @property
    def exit_status(self) -> int | None:
        """The status that the worker exited with, or None when a signal ended it."""
        status = self.details.get("exit_status")
        return None if status is None else int(status)

    @property
    def signal(self) -> int | None:
        """The number of the signal that ended the worker, or None."""
        number = self.details.get("signal")
        return None if number is None else int(number)

    @property
    def last_output(self) -> str:
        """The end of the call's output."""
        return str(self.details.get("last_output", ""))


class OutOfMemory(WorkerDied):
    """The worker used more memory than it may; limit and peak are in bytes."""

    code = "out_of_memory"

    @property
    def limit_bytes(self) -> int | None:
        """The limit that was enforced."""
        limit = self.details.get("limit_bytes")
        return None if limit is None else int(limit)

    @property
    def peak_bytes(self) -> int | None:
        """The most that was measured."""
        peak = self.details.get("peak_bytes")
        return None if peak is None else int(peak)

    @property
    def next_type(self) -> str | None:
        """The next larger machine type, or None where the machine has no more memory."""
        return str(self.details.get("next_type") or "") or None


class CallTimeout(CallerError, TimeoutError):
    """The call took longer than its `timeout`."""

    code = "call_timeout"


class CallCancelled(CallerError):
    """The call was cancelled after it had started."""

    code = "call_cancelled"


class CallLost(CallerError):
    """A detached call ran when the daemon ended; how far it came is not known, and it is not made again."""

    code = "call_lost"


class CallUnknown(CallerError, LookupError):
    """No detached call or batch has this id: it never had one, or has expired."""

    code = "call_unknown"


class SecretUnknown(CallerError, LookupError):
    """A function names a secret that its user does not have, or one that is not there is deleted."""

    code = "secret_unknown"


class PythonVersionMismatch(CallerError):
    """A pickled function cannot run on another minor version of Python than its caller's."""

    code = "python_version_mismatch"


class ResourcesUnavailable(CallerError):
    """The call asks for more than this host can ever give it."""

    code = "resources_unavailable"


class NotAuthorized(CallerError, PermissionError):
    """A server does not take the caller's key, or the key is not for this.

    `details["status"]` is the HTTP status: 401 for no valid key, 403 for a key that is not for this, 429 for too
    many attempts.
    """

    code = "not_authorized"

    @property
    def status(self) -> int:
        status = self.details.get("status")
        return status if isinstance(status, int) else 401


class SyncError(CallerError, OSError):
    """A directory could not be mirrored; the target is as it was."""

    code = "sync"

    __str__ = AtollError.__str__


class SourceNotFound(SyncError, FileNotFoundError):
    """The directory to upload does not exist; `errno` and `filename` are set as for the built-in error."""

    code = "sync_source_not_found"

    def __init__(self, message: str = "", *, hint: str = "", **details: Any) -> None:
        super().__init__(message, hint=hint, **details)
        self.errno = errno.ENOENT
        self.filename = details.get("path")


class SnapshotError(CallerError, OSError):
    """A snapshot is not there, is there already, or is in use; `reason` in the details tells them apart."""

    code = "snapshot"

    __str__ = AtollError.__str__


class VolumeBusy(CallerError, OSError):
    """Calls run that would see the volume change under them; nothing was changed."""

    code = "volume_busy"

    __str__ = AtollError.__str__

    @property
    def calls(self) -> list[dict[str, str]]:
        """The running calls: `call` and `function` of each; a shell has no call's id."""
        found = self.details.get("calls")
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


class PortUnreachable(CallerError, ConnectionError):
    """A port inside a sandbox takes no connection: nothing listens there."""

    code = "port_unreachable"

    __str__ = AtollError.__str__


class QuotaExceeded(CallerError, OSError):
    """The volume would grow over its user's quota."""

    code = "quota_exceeded"

    __str__ = AtollError.__str__


class DownloadError(CallerError, OSError):
    """A file could not be downloaded: no such address, no network, a server that refuses or breaks off."""

    code = "download"

    @property
    def status(self) -> int | None:
        """The status of the server's answer, or None when there was none."""
        status = self.details.get("status")
        return None if status is None else int(status)

    __str__ = AtollError.__str__


class ChecksumMismatch(DownloadError):
    """The downloaded contents have another digest, and were discarded. Digests are in hexadecimal."""

    code = "checksum_mismatch"

    @property
    def expected(self) -> str:
        """The digest that was given."""
        return str(self.details.get("expected", ""))

    @property
    def found(self) -> str:
        """The digest of the downloaded contents."""
        return str(self.details.get("found", ""))


# --- the operator's to mend -------------------------------------------------------------------------------------


class OperatorError(AtollError):
    """The machine, its disk or its permissions must change."""

    code = "operator_error"


class SandboxUnavailable(OperatorError):
    """No sandbox can be made here: no bwrap, or no user namespaces."""

    code = "sandbox_unavailable"


class DiskFull(OperatorError, OSError):
    """The state or the volume has no space left."""

    code = "disk_full"

    __str__ = AtollError.__str__


class StateUnusable(OperatorError, OSError):
    """The state below `ATOLL_HOME` cannot be read or written."""

    code = "state_unusable"

    __str__ = AtollError.__str__


class VolumesUnavailable(StateUnusable):
    """The shared file system that carries `/data` is not there, does not answer, or is not safe to use."""

    code = "volumes_unavailable"


class StateUntrusted(StateUnusable):
    """Another user can change the state below `ATOLL_HOME`, or is the one who listens there; nothing was sent."""

    code = "state_untrusted"

    @property
    def path(self) -> str:
        """The file or directory in question; `uid` and `mode` are in the details."""
        return str(self.details.get("path", ""))


class DetachedFull(OperatorError):
    """Detached calls take as much of the disk as they may; nothing that is kept was lost."""

    code = "detached_full"


class HostUnreachable(OperatorError, ConnectionError):
    """The daemon or the server does not answer."""

    code = "host_unreachable"

    __str__ = AtollError.__str__


class ProtocolMismatch(OperatorError):
    """The two sides speak versions that are too far apart."""

    code = "protocol_mismatch"


# --- ours to mend -----------------------------------------------------------------------------------------------


class InternalError(AtollError):
    """Atoll broke its own promise; please report it with the details."""

    code = "internal"


def _subclasses(root: type[AtollError]) -> list[type[AtollError]]:
    return [root, *(found for child in root.__subclasses__() for found in _subclasses(child))]


_BY_CODE = {cls.code: cls for cls in _subclasses(AtollError)}


def from_data(data: dict[str, Any]) -> AtollError:
    """Rebuild an error from `AtollError.to_data`; an unknown code gives an `InternalError` that names it."""
    code = data.get("code")
    cls = _BY_CODE.get(code) if isinstance(code, str) else None
    message = str(data.get("message", ""))
    details = data.get("details")
    details = {str(name): value for name, value in details.items()} if isinstance(details, dict) else {}
    details = {name: value for name, value in details.items() if name not in ("self", "message", "hint")}
    if cls is None:
        return InternalError(f"unknown error `{code}`: {message}", hint="upgrade the older side", **details)
    return cls(message, hint=str(data.get("hint", "")), **details)
