"""The part of the published clients' addresses; before the part of endpoints, whose addresses begin with owners."""

from __future__ import annotations

from atoll.server.published import addresses, app_files, applications, files, parts, users
from atoll.server.state import ServerState


def install(state: ServerState) -> None:
    """Add the part."""
    state.routes[:0] = [
        *users.routes(),
        *files.routes(),
        *app_files.routes(),
    ]  # before those of the page; see `answers.ForPrograms`
    state.routes += applications.routes()
    addresses.install(state)
    state.parts[parts.PART] = parts.Uploads()
    state.body_bytes[files.PREFIX + "/"] = files.MOST_BODY_BYTES
