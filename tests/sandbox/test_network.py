"""Outbound networks for real: what is reached through them and what is not, in a world of two machines."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT, Someone

pytestmark = pytest.mark.as_user

# Each address is tried plainly, and by naming the device, which needs no privilege: then the kernel takes an address
# that no route leads to as one on the link.
TRY = r"""
import errno, json, socket, struct, sys
def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET
def attempt(address, port, bound):
    with socket.socket(family(address), socket.SOCK_STREAM) as client:
        client.settimeout(3.0)
        try:
            if bound:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"tap0\0")
            client.connect((address, port))
        except OSError as error:
            return "timeout" if isinstance(error, TimeoutError) else errno.errorcode[error.errno]
        return "reached"
found = {}
for address, port in json.loads(sys.argv[1]):
    found[f"{address} {port}"] = [attempt(address, port, bound) for bound in (False, True)]
try:
    found["name"] = socket.getaddrinfo("somewhere.example.org", 80, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
except OSError as error:
    found["name"] = repr(error)
with open("/etc/resolv.conf") as file:
    found["resolv"] = file.read()
with open("/proc/self/status") as file:
    found["capabilities"] = [line.split()[1] for line in file if line.startswith(("CapEff", "CapBnd", "CapPrm"))]
found["devices"] = [name for _, name in socket.if_nameindex()]
try:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as netlink:
        netlink.settimeout(60)
        # NFT_MSG_DELTABLE of every table of the family
        body = struct.pack("!BBH", 2, 0, 0)
        batch = lambda kind: struct.pack("=IHHII", 20, kind, 1, 0, 0) + struct.pack("!BBH", 0, 0, 10)
        netlink.send(batch(16) + struct.pack("=IHHII", 20, 10 << 8 | 2, 5, 1, 0) + body + batch(17))
        found["flush"] = struct.unpack_from("=i", netlink.recv(4096), 16)[0]
except OSError as error:
    found["flush"] = -error.errno
print(json.dumps(found))
"""

LISTEN = r"""
import json, socket, sys, threading
server = socket.create_server(("::", 9000), family=socket.AF_INET6, dualstack_ipv6=True)
def serve():
    while True:
        server.accept()[0].close()
threading.Thread(target=serve, daemon=True).start()
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    probe.connect(("203.0.113.9", 1))
    own = probe.getsockname()[0]
print(json.dumps([[own, 9000], ["127.0.0.1", 9000], ["10.50.0.1", 9000], ["172.30.0.1", 9000]]), flush=True)
sys.stdin.read()
"""

CUT = r"""
import json, socket, sys
def attempt(address):
    with socket.socket() as client:
        client.settimeout(3.0)
        try:
            client.connect((address, 8080))
        except OSError as error:
            return type(error).__name__
        return "reached"
for turn in range(2):
    print(json.dumps([attempt("203.0.113.9"), attempt("127.0.0.1")]), flush=True)
    turn or input()
"""

REACHED = ("203.0.113.9", "10.50.0.2", "fd50::2")
REFUSED = ("127.0.0.1", "::1", "10.50.0.1", "172.30.0.1", "fd50::1", "169.254.169.254", "fd00:ec2::254")


def carrier(name: str) -> dict[str, str]:
    """Return the setting that names a program of this machine, or skip the test."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"`{name}` is not installed")
    return {name: path}


def run(someone: Someone, **order: Any) -> dict[str, Any]:
    """Run the driver in the world; this needs root, whoever runs the sandboxes in it."""
    if os.geteuid() != 0:
        pytest.skip("a world of its own needs root")
    if shutil.which("ip") is None or not os.path.exists("/dev/net/tun"):
        pytest.skip("needs `ip` and `/dev/net/tun`")
    order = {"home": str(someone.home), "base": someone.base, **order}
    driver = [someone.python, str(ROOT / "tests/sandbox/network_driver.py"), json.dumps(order)]
    world = [sys.executable, str(ROOT / "tests/sandbox/world.py"), *someone.prefix, *driver]
    done = subprocess.run(
        ["unshare", "--mount", "--net", "--", *world],
        env=someone.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_outbound_reaches_the_world_and_nothing_of_the_machine(someone: Someone) -> None:
    """The internet, the local network and DNS are reached; no loopback, own address, metadata or other sandbox is."""
    targets = [[address, 8080] for address in (*REACHED, *REFUSED)]
    found = run(someone, programs=carrier("pasta"), **{"try": TRY}, listen=LISTEN, addresses=targets)
    assert "reached" in found, found
    reached = found["reached"]
    assert reached["name"] == "203.0.113.9"
    assert reached["resolv"].splitlines()[1:] == ["search example.org"]
    for address in REACHED:
        assert reached[f"{address} 8080"][0] == "reached", reached
    for address in REFUSED:
        assert "reached" not in reached[f"{address} 8080"], reached
    for address, port in found["listens"]:
        assert "reached" not in reached[f"{address} {port}"], reached
    assert set(reached["devices"]) == {"lo", "tap0"}
    assert {int(one, 16) for one in reached["capabilities"]} == {0}
    assert reached["flush"] == -1, "a sandbox cannot change what is refused"
    assert found["shared"] == [True] * 4
    assert (found["status"], found["left"]) == (0, [])


def test_a_network_that_has_lost_its_program_is_cut_off(someone: Someone) -> None:
    """When pasta is killed nothing is reached any more, and a sandbox that is watched ends with the reason."""
    found = run(someone, programs=carrier("pasta"), cut=CUT)
    assert found["before"] == ["reached", "ConnectionRefusedError"]
    assert found["after"][0] != "reached"
    assert found["after"][1] == "ConnectionRefusedError"
    assert found["failure"]["code"] == "sandbox_unavailable"
    assert found["left"] == []


@pytest.mark.parametrize("network", ["", "outbound"])
def test_without_a_program_outbound_is_refused_and_unset_is_told(
    someone: Someone, tmp_path: Path, network: str
) -> None:
    """Where no network can be made, a policy that is given is refused with the fix, and unset is the machine's own."""
    found = run(someone, programs={"pasta": "/bin/false"}, network=network)
    if network:
        assert found["raised"]["code"] == "sandbox_unavailable"
        assert found["raised"]["hint"]
    else:
        assert found["policy"] == "host"
        (notice,) = found["notices"]
        assert notice.startswith("functions share this machine's network: ")


def test_a_function_with_ports_never_shares_the_machines_network(someone: Someone, tmp_path: Path) -> None:
    """Where no network can be made it has none, and says so: it would listen at the machine's ports, beside others."""
    found = run(someone, programs={"pasta": "/bin/false"}, network="", own=True)
    assert found["policy"] == "none"
    (notice,) = found["notices"]
    assert notice.startswith("this function has no network: ")
