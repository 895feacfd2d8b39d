"""Acts on a server's node that go with acts on its users."""

from __future__ import annotations

from typing import Any, Protocol

from atoll.server.accounts.bodies import UserFacts


class Asks(Protocol):
    """The node of a state directory: `server.node.Node`."""

    def request(self, principal: None, name: str, arguments: dict[str, Any]) -> dict[str, Any]: ...


def remove_user(node: Asks, user: str, *, keep: bool) -> str:
    """End a removed user's calls at the node; return where the volume is kept, empty for nowhere.

    Raises:
        AtollError: as the node answers.
    """
    return str(node.request(None, "users.remove", {"user": user, "keep": keep})["kept"])


def set_quota(node: Asks, user: UserFacts) -> dict[str, Any]:
    """Set a user's quotas of bytes and files at the node; return the quota with its use.

    Raises:
        AtollError: as the node answers.
    """
    asked = {"user": user.id, "bytes": user.volume_bytes, "files": user.volume_files}
    return node.request(None, "quotas.set", asked)
