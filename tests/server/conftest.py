"""One server for all tests that do not mind each other's calls, users and connections."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .process import Server, running


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A real server process over TLS in a fresh state directory, with its node: url, ca_file, key, home, pid."""
    with running() as found:
        yield found
