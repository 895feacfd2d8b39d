"""Nodes with the rights of the state directory: for the command line on the server's machine, with no key.

A running server notices changes by the database's marks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from atoll.server.accounts.audit import MACHINE
from atoll.server.accounts.tokens import read_pepper
from atoll.server.cluster.contract import LOCAL
from atoll.server.database.database import Database
from atoll.server.nodes import acts, bodies, live, rows

if TYPE_CHECKING:
    from typing import Self


class DirectNodes:
    """The nodes of a state directory's server; closed at the end of its `with` block.

    Args:
        home: the state directory.
        url: of the database; empty for the state directory's own.

    Raises:
        StateUnusable, StateUntrusted: as `Database` and `read_pepper`.
    """

    def __init__(self, home: Path, url: str = "") -> None:
        self._home = home
        self._pepper = read_pepper(home, make=False)
        self._database = Database(home, url, make=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def list_nodes(self, status: Mapping[str, Any] | None) -> bodies.NodeRows:
        """Return all nodes; with live figures where the server has shared some just now.

        Args:
            status: of this machine's daemon; None if none runs.
        """
        with self._database.reading() as connection:
            found = rows.all_nodes(connection)
        shared = {one.id: one for one in live.shared(self._home)}
        plain = [_joined(bodies.plain_row(node), shared.get(node.id)) for node in found]
        if status is not None:
            plain = [live.own_row(row, status) if row.name == LOCAL else row for row in plain]
        return bodies.NodeRows(plain)

    def make_token(self, asked: bodies.NewToken) -> bodies.MadeToken:
        """Make a token to join."""
        with self._database.writing() as connection:
            return acts.made_token(connection, self._pepper, MACHINE, asked)

    def revoke_tokens(self) -> bodies.RevokedTokens:
        """Revoke all tokens."""
        with self._database.writing() as connection:
            return acts.revoked_tokens(connection, MACHINE)

    def change(self, name: str, state: str, act: str) -> bodies.NodeRow:
        """Change a node's state."""
        with self._database.writing() as connection:
            return acts.changed(connection, MACHINE, name, state, act)


def _joined(row: bodies.NodeRow, seen: bodies.NodeRow | None) -> bodies.NodeRow:
    """Return a node's row as the server has shared it, with its state as it is now."""
    return row if seen is None else msgspec.structs.replace(seen, state=row.state, labels=row.labels)
