"""A package that is upgraded under a server or a program: nodes of the new version are named, not asked for again for ever."""

from __future__ import annotations

import asyncio
import logging
import select
from collections.abc import Sequence
from typing import Any

import pytest

from atoll import __version__, errors, settings
from atoll.host import daemon_start
from atoll.server import health, node
from atoll.server.node import Node
from atoll.server.state import ServerState
from atoll.wire.async_channel import AsyncChannel

from ..conftest import Home
from ..waiting import PATIENCE_SECONDS


def test_a_server_names_the_version_of_its_node(
    atoll_home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The client, `/readyz` and the log have both versions; later requests start no node again."""
    monkeypatch.setattr(node, "__version__", "0.0.1")
    found = Node(settings.load(atoll_home.path))
    text = f"the node is atoll {__version__}, and this server is still 0.0.1"
    with caplog.at_level(logging.ERROR), pytest.raises(errors.HostUnreachable, match=text) as caught:
        asyncio.run(found.ask(None, "capacity", {}))
    assert "restart the server" in caught.value.hint
    assert [record.message for record in caplog.records] == ["node_of_another_version"]
    daemon_start.start(found.options)
    pid = atoll_home.daemon_pid()
    assert text.encode() in asyncio.run(health.readiness(ServerState(found))).body
    with pytest.raises(errors.HostUnreachable, match=text):
        found.request(None, "capacity", {})
    assert atoll_home.daemon_pid() == pid
    assert len(caplog.records) == 1


def test_an_answer_that_is_faster_than_the_rest_of_a_message_counts(
    atoll_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that refuses the greeting, and has gone before the message behind it is sent, is of another version."""
    post = AsyncChannel.post

    def late(self: AsyncChannel, header: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        if header["type"] != "hello":
            gone = select.poll()
            gone.register(self._channel.fileno(), 0)  # for the end alone
            assert gone.poll(1000 * PATIENCE_SECONDS)
        post(self, header, descriptors)

    options = settings.load(atoll_home.path)
    daemon_start.start(options)
    monkeypatch.setattr(AsyncChannel, "post", late)
    monkeypatch.setattr(node, "__version__", "0.0.1")
    with pytest.raises(errors.HostUnreachable, match=f"the node is atoll {__version__}"):
        asyncio.run(Node(options).ask(None, "capacity", {}))


def test_a_program_is_told_that_its_package_was_changed(atoll_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that is another version whenever it is started is no daemon that does not answer."""
    monkeypatch.setattr(daemon_start, "__version__", "0.0.1")
    text = f"the installed package is atoll {__version__}, and this process is still 0.0.1"
    with pytest.raises(errors.ProtocolMismatch, match=text) as caught:
        daemon_start.open_connection(settings.load(atoll_home.path))
    assert "start it again" in caught.value.hint


def test_a_daemon_of_this_version_is_not_replaced(atoll_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several that find an older daemon the first replaces it; the others leave the new one alone."""
    options = settings.load(atoll_home.path)
    daemon_start.start(options)
    pid = atoll_home.daemon_pid()
    daemon_start.replace(options)
    daemon_start.open_connection(options).close()
    assert atoll_home.daemon_pid() == pid
    monkeypatch.setattr(daemon_start, "__version__", "0.0.1")
    daemon_start.replace(options)
    monkeypatch.undo()
    daemon_start.open_connection(options).close()
    assert atoll_home.daemon_pid() != pid
