"""Records of a server about its machines: their sessions, how long those of a silent machine are kept, and accounts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol


class Held(NamedTuple):
    """A session of a node.

    Args:
        node: its name.
        user, key: who has opened it.
        wish: the placed wish; empty where it has none of this process.
    """

    node: str
    user: str
    key: str
    wish: str


class Away(NamedTuple):
    """A node without a link: until when its sessions are kept, its account, and its machine as it names itself."""

    until: float
    account: str
    machine: str


class Account(Protocol):
    """A node's account, as its part tells of changes."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def facts(self) -> Mapping[str, Any]: ...
    @property
    def labels(self) -> Mapping[str, str]: ...
