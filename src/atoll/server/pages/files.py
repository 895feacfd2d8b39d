"""Pages of files: directories of the user's volume, previews, and forms that make, move and remove.

Contents come from `/v1/files/`, whose headers keep them from acting on this origin.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from starlette.responses import Response
from starlette.routing import BaseRoute

from atoll import errors
from atoll.server.files import paths
from atoll.server.files.peers import Lent, Peers
from atoll.server.files.transfers import transfers_of
from atoll.server.files.upload import write
from atoll.server.pages import previews, upload
from atoll.server.pages.visit import Visit, route
from atoll.storage.client.volume import VolumeClient
from atoll.storage.files.tree import DIRECTORY, FILE, SYMLINK, Status

ROWS = 200
_KINDS = {FILE: "file", DIRECTORY: "directory", SYMLINK: "link"}


def routes() -> list[BaseRoute]:
    """Return the routes of these pages."""
    return [
        route("/files{rest:path}", shown),
        route("/files{rest:path}", change, method="POST", raw=True),
    ]


@dataclass(frozen=True)
class Row:
    """A name in a directory, as the page shows it.

    Args:
        name: as text.
        path: relative to the volume's root, bytes that are not UTF-8 as surrogates.
        kind: `file`, `directory`, `link` or `special`.
        page: the address of its page.
        content: the address of its content; empty where it has none.
        target: of a link.
    """

    name: str
    path: str
    kind: str
    size: int
    modified: float
    page: str
    content: str
    target: str = ""


def page_of(path: str) -> str:
    """Return the address of the page of a path."""
    return "/files/" + quote(path.encode("utf-8", "surrogateescape"), safe="/")


def path_of(visit: Visit) -> str:
    """Return the path that an address of these pages names.

    Raises:
        CallerError: it names none.
    """
    try:
        return paths.from_address(b"/v1" + visit.request.scope["raw_path"].partition(b"?")[0]).path
    except paths.BadPath as error:
        raise errors.CallerError(str(error), hint=error.hint, status=400) from error


async def shown(visit: Visit) -> Response:
    """Show a directory or a file."""
    path = path_of(visit)
    peers: Peers = visit.state.parts["files"]
    async with peers.lent(visit.user) as lent:
        status = await lent.call(lent.volume.status, path)
        if status.kind == DIRECTORY:
            return await _directory(visit, lent, path)
        return await _file(visit, lent, path, status)


async def _directory(visit: Visit, lent: Lent, path: str) -> Response:
    after = visit.request.query_params.get("after", "")
    found = await lent.call(lent.volume.page, path, after, ROWS + 1)
    names = list(found)[:ROWS]
    above = f"{path}/" if path else ""
    rows = [_row(above + name, found[name]) for name in names]
    rows.sort(key=lambda row: row.kind != "directory")
    address = page_of(path)
    return visit.page(
        "files.html",
        path=paths.shown(path),
        trail=_trail(path),
        rows=rows,
        here=address,
        upload=paths.address(path, directory=True) or f"{paths.PREFIX}/",
        first=f"{address}" if after else "",
        more=f"{address}?after={paths.encoded(names[-1])}" if len(found) > ROWS else "",
    )


def _row(path: str, status: Status) -> Row:
    kind = _KINDS.get(status.kind, "special")
    readable = status.kind == FILE or (status.kind == SYMLINK and status.leads == FILE)
    return Row(
        paths.shown(path.rpartition("/")[2]),
        path,
        kind,
        status.size,
        status.mtime_ns / 1e9,
        page_of(path),
        paths.address(path) if readable else "",
        paths.shown(status.target),
    )


def _trail(path: str) -> list[tuple[str, str]]:
    """Return the name and the page of each directory above a path."""
    parts = path.split("/") if path else []
    return [(paths.shown(part), page_of("/".join(parts[: number + 1]))) for number, part in enumerate(parts)]


def _preview(volume: VolumeClient, path: str, size: int) -> previews.Preview:
    """Return the preview of a file's content; takes up to a second, in a thread."""
    content = volume.read_bytes(path, 0, previews.MOST_BYTES)
    return previews.of_content(path.rpartition("/")[2], content, size)


async def _file(visit: Visit, lent: Lent, path: str, status: Status) -> Response:
    name = path.rpartition("/")[2]
    preview: previews.Preview | None
    if status.kind != FILE:
        preview = previews.Preview("none", reason="This is neither a file nor a directory.")
    else:
        preview = previews.of_media(name, status.size) or await lent.call(_preview, lent.volume, path, status.size)
    return visit.page(
        "file.html",
        row=_row(path, status),
        trail=_trail(path)[:-1],
        preview=preview,
        content=paths.address(path),
        above=page_of(path.rpartition("/")[0]),
    )


async def change(visit: Visit) -> Response:
    """Take files that a form sends, or do to a path as a form says."""
    path = path_of(visit)
    peers: Peers = visit.state.parts["files"]
    if visit.request.headers.get("content-type", "").startswith("multipart/form-data"):
        files = upload.FormFiles(visit.request)
        name = await files.next()
        async with transfers_of(visit.request).opened(visit.user), peers.lent(visit.user) as lent:
            while name is not None:
                await write(lent, f"{path}/{name}" if path else name, files.batches())
                name = await files.next()
        return visit.go(page_of(path), "uploaded")
    form = await upload.read_form(visit.request)
    async with peers.lent(visit.user) as lent:
        match form.get("act"):
            case "mkdir":
                made = _name(form.get("name", ""))
                await lent.call(lent.volume.mkdir, f"{path}/{made}" if path else made)
                return visit.go(page_of(path), "made")
            case "remove":
                await lent.call(lent.volume.remove, path, recursive=form.get("recursive") == "yes")
                return visit.go(page_of(path.rpartition("/")[0]), "removed")
    raise errors.CallerError("the form names no act", hint="load the page again", status=400)


def _name(text: str) -> str:
    """Return a name for a new directory.

    Raises:
        CallerError: no directory can have it.
    """
    try:
        found = paths.from_text(text.strip())
    except paths.BadPath as error:
        raise errors.CallerError(str(error), hint=error.hint, status=400) from error
    if not found.path or "/" in found.path:
        raise errors.CallerError("a directory needs a name without `/`", hint="make one at a time", status=400)
    return found.path
