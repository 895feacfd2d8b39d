"""The hosts that the suite runs against, each as a `Place`."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pytest

from atoll import Host, IsolatedFunction, LocalHost, isolated

from ..conftest import needs_outbound
from ..server.process import Server, on_cluster, running

P = ParamSpec("P")
R = TypeVar("R")

PLACES = ("cluster",) if on_cluster() else ("local", "remote")
"""One name for each kind of host; `place` makes it."""
SAME_WORKERS = {
    *("test_arrays", "test_cached", "test_callables", "test_plain_data", "test_surroundings", "test_system"),
    *("test_tracebacks", "test_values", "test_errors", "test_limits"),
}
"""Modules about the inside of a worker, which is the same behind a server: one test of each is enough there."""
SLOW = {
    "test_a_thousand_calls_submitted_at_once_are_answered_once_each",
    "test_kills_at_random_moments_beside_twenty_others",
    "test_values_come_back_as_they_were",
    "test_every_kind_of_function_can_be_detached",
    "test_options_of_a_call_are_honoured",
    "test_a_batch_is_resumed_with_the_items_that_failed",
    "test_an_interrupted_command_ends_with_one_line",
}
"""Tests that take long, and on a server the longer."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run each test once on a server, but for `SLOW`, and of `SAME_WORKERS` one; all on a cluster, and with `SOAK=1`."""
    if os.environ.get("SOAK") or on_cluster():
        return
    seen = set[str]()
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        call = getattr(item, "callspec", None)
        if item.path.parent != Path(__file__).parent or call is None or call.params.get("place", "local") == "local":
            kept.append(item)
            continue
        name = item.path.stem if item.path.stem in SAME_WORKERS else item.nodeid.partition("[")[0]
        slow = item.nodeid.partition("[")[0].rpartition("::")[2] in SLOW
        (left_out if name in seen or slow else kept).append(item)
        seen.add(name)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


@dataclass(frozen=True)
class Place:
    """A host under test.

    Args:
        host: where functions run.
        variables: what makes this host the default one of another program.
        here: it is this machine, whose directories and network functions can have.
    """

    host: Any
    variables: Mapping[str, str]
    here: bool = True

    def isolated(self, function: Callable[P, R], **options: Any) -> IsolatedFunction[P, R]:
        """Return the function, isolated on this host; skips where a server cannot have what it needs."""
        if not self.here and (options.get("mounts") or options.get("network") == "host"):
            pytest.skip("a server's functions have neither directories nor the network of its machine")
        made: IsolatedFunction[P, R] = isolated(host=self.host, **options)(function)
        return made

    @contextlib.contextmanager
    def program(self, path: Path, text: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """Write and start a program of its own whose default host is this one; its three streams are pipes.

        It takes signals as from a terminal, also where who runs the tests ignores them, and has ended afterwards.
        """
        path.write_text(f"import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n{text}")
        with subprocess.Popen(
            [sys.executable, str(path), *arguments],
            cwd=path.parent,
            env={**os.environ, **self.variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as run:
            try:
                yield run
            finally:
                run.kill()


@pytest.fixture(scope="session")
def conformance_server() -> Iterator[Server]:
    """A server of its own, over TLS by an authority that was made for it."""
    closed = bool(needs_outbound.args[0])  # the network of a server's functions cannot be made
    with running(share_network=closed) as server:  # with `ATOLL_CONFORMANCE=cluster` one with nodes behind it
        yield server


@pytest.fixture(scope="session", params=PLACES)
def place(request: pytest.FixtureRequest) -> Place:
    """A host that all tests of the suite share: they leave each other's files in `/data` alone."""
    if request.param != "local":
        server: Server = request.getfixturevalue("conformance_server")
        key_id, key_secret = server.key
        variables = {"ATOLL_HOST": server.url, "ATOLL_KEY_ID": key_id, "ATOLL_KEY_SECRET": key_secret}
        made = Place(
            Host(server.url, key_id=key_id, key_secret=key_secret, ca_file=str(server.ca_file)),
            {**variables, "ATOLL_CA_FILE": str(server.ca_file), **server.client_variables},
            here=False,
        )
    else:
        home = request.getfixturevalue("_session_home").path
        made = Place(LocalHost(home), {"ATOLL_HOME": str(home)})
    made.isolated(int)()  # what a host says once, it has said
    return made


@pytest.fixture(autouse=True)
def _packages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take a server's packages from its own index, also where those of this machine are in directories; be in its network."""
    if "place" not in request.fixturenames or request.getfixturevalue("place").here:
        yield
        return
    server: Server = request.getfixturevalue("conformance_server")
    for name, value in server.client_variables.items():
        monkeypatch.setenv(name, value)
    with server.entered():  # other clusters of this process have networks of their own, with the same addresses
        yield
