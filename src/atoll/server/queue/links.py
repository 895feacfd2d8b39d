"""The addresses of a request, as its client has named the server, and the forms that they have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from starlette.requests import Request

from atoll import errors

_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{1,300}")
_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
QUEUE = "/queue"
"""The native addresses begin so."""


@dataclass(frozen=True)
class Links:
    """The addresses of a client's requests to an endpoint.

    Args:
        base: the address of the endpoint, as the client has named it.
        native: they are below `/queue`, as today's clients have them; else in the endpoint's own paths, as in 2023.
    """

    base: str
    native: bool

    def response(self, request: str) -> str:
        """Return the address of the answer."""
        return (
            f"{self.base}/requests/{request}" if self.native else f"{self.base}/fal/queue/requests/{request}/response"
        )

    def status(self, request: str) -> str:
        """Return the address of the status."""
        return (
            f"{self.base}/requests/{request}/status"
            if self.native
            else f"{self.base}/fal/queue/requests/{request}/status"
        )

    def cancel(self, request: str) -> str:
        """Return the address that cancels."""
        return f"{self.base}/requests/{request}/cancel" if self.native else f"{self.base}/fal/queue/{request}/cancel"


def parts_of(request: Request) -> tuple[list[str], str]:
    """Return the segments of the path before the endpoint's end, and the rest, both as the client has written them.

    Raises:
        CallerError: owner or alias have characters in another writing, so that two readers could see two paths.
    """
    parameters = request.path_params
    raw = request.scope["raw_path"].decode("latin-1")
    before = 3 if _is_native(request) else 2
    parts = raw.split("/", before + 1)
    if [unquote(one) for one in parts[before - 1 : before + 1]] != [parameters["owner"], parameters["alias"]]:
        raise errors.CallerError("the path names owner and alias ambiguously", hint="write them plainly", status=400)
    return parts[: before + 1], parts[before + 1] if len(parts) > before + 1 else ""


def _is_native(request: Request) -> bool:
    route: str = request.scope["route"].path
    return route.startswith(QUEUE + "/")


def links_of(request: Request) -> Links:
    """Return the addresses for the client of a request: its scheme, its host, its prefix.

    Raises:
        CallerError: as `parts_of`, or the host is none.
    """
    host = request.headers.get("host", "")
    if not _HOST.fullmatch(host):
        raise errors.CallerError("the host is none", hint="name the server's host", status=400)
    before, _ = parts_of(request)
    path = request.scope.get("root_path", "") + "/".join(before)
    return Links(f"{request.scope['scheme']}://{host}{path}", _is_native(request))


def check_id(text: str) -> str:
    """Return the id of a request.

    Raises:
        CallerError: it is none, status 404.
    """
    if not _ID.fullmatch(text):
        raise unknown()
    return text


def unknown() -> errors.CallerError:
    """Return the error for a request that there is not, or that is another's."""
    return errors.CallerError("there is no such request", hint="answers are kept for some days", status=404)
