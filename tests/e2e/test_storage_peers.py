"""Storage peers of the daemon: they rest between clients, and have what they compute with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll import LocalHost
from atoll.host import storage_channels
from atoll.sdk.data.sync import sync_dir
from atoll.storage.client.volume import VolumeClient
from atoll.storage.content.digest import algorithms
from atoll.storage.sync.index import decode
from atoll.wire.channel import Channel

from ..conftest import Home
from ..waiting import until

pytestmark = pytest.mark.as_user


@pytest.fixture
def host(shared_home: Home) -> Iterator[LocalHost]:
    """A host of its own, so that nobody else's channels rest there."""
    made = LocalHost(shared_home.path)
    yield made
    if made._warm is not None:
        made._warm.close()


def kept(host: LocalHost) -> Channel:
    """Use storage once and return the channel that rests."""
    with VolumeClient(host.open_storage(), host.keep_storage) as client:
        client.listdir()
        return client.connection.channel


def test_the_next_client_gets_the_peer_of_the_last(host: LocalHost) -> None:
    """A channel at rest is lent again, and works."""
    first = kept(host)
    with VolumeClient(host.open_storage(), host.keep_storage) as client:
        assert client.connection.channel is first
        client.listdir()
        with VolumeClient(host.open_storage(), host.keep_storage) as other:
            assert other.connection.channel is not first
            other.listdir()


def test_a_peer_that_has_gone_is_not_lent(host: LocalHost) -> None:
    """A peer that rested for as long as it was told has ended, and the next client gets another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage_channels, "REST_SECONDS", 0.0)
        patch.setattr(storage_channels, "MARGIN_SECONDS", -60.0)
        first = kept(host)
    until(first.readable)  # the end of the stream, when the peer has ended
    with VolumeClient(host.open_storage(), host.keep_storage) as client:
        assert client.connection.channel is not first
        client.listdir()


def test_few_rest_and_none_in_the_middle_of_a_request(host: LocalHost) -> None:
    """Each resting peer is a process; one that still has something to say is not kept."""
    clients = [VolumeClient(host.open_storage(), host.keep_storage) for _ in range(storage_channels.MOST + 1)]
    for client in clients:
        client.listdir()
        client.close()
    assert host._warm is not None
    assert len(host._warm._resting) == storage_channels.MOST
    host._warm.close()
    with VolumeClient(host.open_storage(), host.keep_storage) as client:
        client.write("rest-test", [bytes(8 << 20)])
        reader = client.read("rest-test")
        next(reader)
        del reader
    assert not host._warm._resting


def test_a_forked_child_has_none_of_its_parents(host: LocalHost) -> None:
    """What rests in the parent stays the parent's."""
    first = kept(host)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = int(host._warm is None or bool(host._warm._resting))
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with VolumeClient(host.open_storage(), host.keep_storage) as client:
        assert client.connection.channel is first
        client.listdir()


def test_peers_have_the_fast_digest(host: LocalHost, shared_home: Home, tmp_path: Path) -> None:
    """The packages of the daemon's environment are in a peer's sandbox, whoever it runs as."""
    (tmp_path / "f").write_text("x")
    sync_dir(tmp_path, "peer-packages", host=host)
    newest = max(shared_home.path.glob("volumes/*/staging/index-*"), key=lambda path: path.stat().st_mtime_ns)
    assert decode(newest.read_bytes()).algorithm == algorithms()[0] == "blake3"
