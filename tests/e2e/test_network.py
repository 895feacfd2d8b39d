"""What a function reaches over the network, by its policy."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest

from atoll import errors, isolated

pytestmark = pytest.mark.usefixtures("shared_home")


def attempt(address: Any) -> str:
    """Connect to an address; return `reached` or the error."""
    family = socket.AF_UNIX if isinstance(address, (str, bytes)) else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(5.0)
        try:
            client.connect(address)
        except OSError as error:
            return type(error).__name__
        return "reached"


@isolated(network="none")
def shut_in(addresses: list[Any]) -> tuple[list[str], list[str], str]:
    devices = [name for _, name in socket.if_nameindex()]
    with socket.create_server(("127.0.0.1", 0)) as own:
        return [attempt(address) for address in addresses], devices, attempt(own.getsockname())


@isolated(network="host")
def shared(addresses: list[Any]) -> list[str]:
    return [attempt(address) for address in addresses]


def test_without_a_network_only_the_sandbox_itself_is_reached() -> None:
    """`none` has a loopback device of its own; the machine's ports and abstract sockets are out of reach."""
    name = f"\0atoll-test-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(name)
        abstract.listen()
        addresses = [server.getsockname(), name]
        assert shared(addresses) == ["reached", "reached"]
        reached, devices, own = shut_in(addresses)
    assert (reached, own) == (["ConnectionRefusedError", "ConnectionRefusedError"], "reached")
    assert devices == ["lo"]


def test_policies_do_not_share_a_worker() -> None:
    """A function that is called with two policies runs in two sandboxes."""
    namespaces = {isolated(os.readlink).on(network=network)("/proc/self/ns/net") for network in ("none", "host")}
    assert len(namespaces) == 2


def test_a_call_from_inside_is_never_let_out() -> None:
    """A function without a network calls others without one only: unset means the same, `host` is refused."""

    @isolated(network="none")
    def outer(network: str | None) -> str:
        return isolated(os.readlink).on(network=network)("/proc/self/ns/net")

    def own() -> str:
        return os.readlink("/proc/self/ns/net")

    assert outer(None) == isolated(own).on(network="none")()
    with pytest.raises(errors.ResourcesUnavailable, match="network `none` cannot call one with network `host`"):
        outer("host")


def test_status_names_the_policy() -> None:
    """`atoll status` shows each sandbox's network."""
    from atoll import local

    shut_in([])
    found = local.request("status", {})
    assert "none" in {sandbox["network"] for sandbox in found["sandboxes"]}
