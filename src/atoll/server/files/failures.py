"""Errors of requests for files, as JSON with a status, a code, the path and the next step."""

from __future__ import annotations

import errno
import functools
from collections.abc import Awaitable, Callable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from atoll import errors
from atoll.server.app import status_of
from atoll.server.files.paths import BadPath, shown
from atoll.storage.protocol.connection import absolute
from atoll.terminal_text import printable

Handler = Callable[[Request], Awaitable[Response]]

_KINDS: dict[int, tuple[int, str, str]] = {
    errno.ENOENT: (404, "file_not_found", "list the directory above with `?list`"),
    errno.EACCES: (403, "file_forbidden", "change the mode of the file or directory"),
    errno.EPERM: (403, "file_forbidden", "choose a path inside `/data`"),
    errno.EEXIST: (409, "file_exists", "choose another name, or remove the file that is there"),
    errno.EISDIR: (409, "is_a_directory", "add `?list` for the contents of a directory"),
    errno.ENOTDIR: (409, "not_a_directory", "choose a path below a directory"),
    errno.ENOTEMPTY: (409, "directory_not_empty", "add `?recursive` to remove all that is in it"),
    errno.EBUSY: (409, "file_busy", "try again in a moment"),
    errno.EMFILE: (429, "too_many_files", "end some of the uploads or downloads first"),
    errno.ENAMETOOLONG: (400, "name_too_long", "choose a shorter name"),
    errno.ELOOP: (400, "symlink_loop", "remove one of the symlinks"),
    errno.EXDEV: (409, "other_file_system", "copy the file instead"),
    errno.ESTALE: (412, "precondition_failed", "read the file again, and repeat with its new `ETag`"),
}
"""Status, code and next step of the file system's errors, by number."""
_STATUSES: dict[type[errors.AtollError], int] = {
    errors.VolumeBusy: 409,
    errors.SnapshotError: 409,
    errors.ResourcesUnavailable: 429,
}


class Refused(Exception):
    """A request that the server answers with a status of its own.

    Args:
        status: of the answer.
        code: stable, for programs.
        hint: the next step.
        headers: further ones.
    """

    def __init__(self, status: int, code: str, message: str, hint: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.hint, self.headers = status, code, hint, headers or {}


def answering(handler: Handler) -> Handler:
    """Return the handler with its errors answered."""

    @functools.wraps(handler)
    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except (Refused, BadPath, OSError, errors.AtollError) as error:
            return failure(error)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it

    return answer


def failure(error: Exception, path: str | None = None) -> JSONResponse:
    """Return the answer for an error.

    Args:
        path: relative to the volume's root, where the error does not name it.
    """
    match error:
        case errors.NotAuthorized():
            raise error
        case errors.AtollError():
            data = error.to_data()
            if path is not None:
                data["details"] = {"path": absolute(shown(path)), **data["details"]}
            status = next((value for kind, value in _STATUSES.items() if isinstance(error, kind)), status_of(error))
            return _answer(status, data)
        case Refused():
            return _answer(error.status, _data(error.code, str(error), error.hint), error.headers)
        case BadPath():
            return _answer(400, _data("bad_path", str(error), error.hint))
        case OSError():
            status, code, hint = _KINDS.get(error.errno or 0, (400, "file_error", "see the message"))
            where = error.filename if isinstance(error.filename, str) else absolute(path or "")
            text = f"{(error.strerror or str(error)).lower()}: `{printable(shown(where))}`"
            return _answer(status, _data(code, text, hint, path=shown(where)))
    raise error


def _data(code: str, message: str, hint: str, **details: object) -> dict[str, object]:
    return {"code": code, "message": message, "hint": hint, "details": details}


def _answer(status: int, data: dict[str, object], headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": data}, status, {"cache-control": "no-store", **(headers or {})})
