"""Outbound networks: what is refused, what the machine's own network is read from, who may ask for what; pure."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from pathlib import Path

import pytest

from atoll.errors import ResourcesUnavailable, SandboxUnavailable
from atoll.model.specs import NETWORKS
from atoll.sandbox import programs
from atoll.sandbox.network import firewall, outbound_network
from atoll.sandbox.network.networks import within

TRIE = """Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.1
           /32 host LOCAL
     |-- 192.168.1.7
        /32 host LOCAL
     |-- 192.168.1.255
        /32 link BROADCAST
Local:
     |-- 192.168.1.7
        /32 host LOCAL
     |-- 10.1.0.1
        /32 host LOCAL
"""
INET6 = """00000000000000000000000000000001 01 80 10 80       lo
fe80000000000000a8bbccfffeddeeff 02 40 20 80     eth0
20010db8000000000000000000000005 02 40 00 80     eth0
"""


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "169.254.169.254", "169.254.1.1", "0.0.0.0", "224.0.0.251", "255.255.255.255"),
        *("100.100.100.200", "168.63.129.16", "192.0.0.192", "10.1.0.1"),
        *("::1", "::", "fe80::1", "ff02::1", "fd00:ec2::254", "fd20:ce::254", "::ffff:127.0.0.1"),
        *("64:ff9b::169.254.169.254", "64:ff9b::10.1.0.1"),
    ],
)
def test_what_no_sandbox_may_reach_is_refused(address: str) -> None:
    """Loopback, link-local, metadata and the machine's own addresses are refused, translated ones too."""
    one = ipaddress.ip_address(address)
    assert any(one in network for network in firewall.refused(["10.1.0.1"]) if network.version == one.version)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "192.168.1.1", "10.1.0.2", "100.100.100.201", "2606:4700::1", "fd12::1"]
)
def test_the_internet_and_the_local_network_are_not_refused(address: str) -> None:
    """Other machines, those of the local network too, are reached."""
    one = ipaddress.ip_address(address)
    assert not any(one in network for network in firewall.refused(["10.1.0.1"]) if network.version == one.version)


@pytest.mark.parametrize("ipv6", [True, False])
def test_the_messages_are_one_whole_batch(ipv6: bool) -> None:
    """Lengths add up, the batch is framed, and the last rule of each family asks for an answer."""
    data = firewall.messages(firewall.refused(["10.1.0.1", "fd50::1"]), outbound_network.RESOLVER, ipv6=ipv6)
    kinds, answered, families = [], 0, set()
    while data:
        length, kind, flags = struct.unpack_from("=IHH", data)
        kinds.append(kind)
        families.add(data[16])
        answered += bool(flags & 0x4)
        assert 20 <= length <= len(data)
        data = data[(length + 3) & ~3 :]
    assert (kinds[0], kinds[-1]) == (16, 17)
    assert all(kind >> 8 == 10 for kind in kinds[1:-1])
    assert families == {0, socket.AF_INET, *([socket.AF_INET6] if ipv6 else [])}
    assert answered == 1 + ipv6


def test_the_machines_addresses_are_read_without_loopback() -> None:
    """Every address that is the machine's own is found, by IPv4 and IPv6; broadcast and loopback are not among them."""
    assert outbound_network.addresses4(TRIE) == ("10.1.0.1", "192.168.1.7")
    assert outbound_network.addresses6(INET6) == ("2001:db8::5", "fe80::a8bb:ccff:fedd:eeff")
    assert outbound_network.addresses4("") == outbound_network.addresses6("") == ()
    assert outbound_network.read_uplink() == outbound_network.read_uplink()


def test_the_resolver_file_keeps_what_is_not_an_address() -> None:
    """Search domains and options stay, the machine's resolvers become the one of the network."""
    text = "# made by\nnameserver 127.0.0.53\nnameserver fe80::1%eth0\nsearch lan example.org\noptions edns0\n"
    assert outbound_network.resolver_file(text, "169.254.53.53") == (
        "nameserver 169.254.53.53\nsearch lan example.org\noptions edns0\n"
    )


def test_a_call_from_inside_is_at_most_as_open() -> None:
    """Each policy may ask for itself and stricter ones; asking for nothing gives no more than its own."""
    for outer in NETWORKS:
        for asked in NETWORKS:
            if NETWORKS.index(asked) <= NETWORKS.index(outer):
                assert within(asked, outer) == asked
            else:
                with pytest.raises(ResourcesUnavailable, match=f"network `{outer}` cannot call one with"):
                    within(asked, outer)
    assert [within("", outer) for outer in ("none", "outbound", "host")] == ["none", "outbound", ""]
    with pytest.raises(ResourcesUnavailable, match="functions on a server have at most network `outbound`, not `host`"):
        within("host", "outbound", inside=False)


def test_a_configured_program_is_taken_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path of the settings is used as it is, and one that cannot be is named, with the fix."""
    program = tmp_path / "pasta"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert programs.find_pasta(str(program)) == str(program)
    with pytest.raises(SandboxUnavailable, match=r"`sandbox\.pasta` is `/nowhere`"):
        programs.find_pasta("/nowhere")
    monkeypatch.setattr(programs, "_DIRECTORIES", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert programs.find_pasta() == str(program)
    os.unlink(program)
    with pytest.raises(SandboxUnavailable, match="`pasta` is not installed") as caught:
        programs.find_pasta()
    assert caught.value.hint == "run `sudo apt install passt`"
