"""The check of requests at the daemon's entrance."""

from __future__ import annotations

from typing import Any

import pytest

from atoll.daemon.request_arguments import MOST_ROWS, read


@pytest.mark.parametrize(
    ("name", "arguments", "limit"),
    [
        ("detached.list", {}, MOST_ROWS),
        ("detached.list", {"limit": 100_000}, MOST_ROWS),
        ("detached.batches", {"limit": 3}, 3),
        ("calls.list", {"limit": 100_000}, MOST_ROWS),
        ("calls.list", {}, None),
        ("detached.list", {"limit": "many"}, "many"),
    ],
)
def test_users_of_a_server_get_lists_in_parts(name: str, arguments: dict[str, Any], limit: object) -> None:
    """A long list is written on the loop that serves others too; the machine's owner gets it whole."""
    message = {"name": name, "arguments": arguments}
    assert read(message, relayed=True)[1].get("limit") == limit
    assert read(message)[1] == arguments
