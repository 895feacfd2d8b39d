"""One server for all tests that do not mind each other's calls, users and connections."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import postgresql
from .process import Server, running


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a PostgreSQL server of this module's; empty for SQLite."""
    if request.param == "sqlite":
        yield ""
        return
    with postgresql.running() as url:
        yield url


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A real server process over TLS in a fresh state directory, with its node: url, ca_file, key, home, pid."""
    with running() as found:
        yield found
