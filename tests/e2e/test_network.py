"""What a function reaches over the network, by its policy."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from atoll import errors, isolated
from tests.conftest import ROOT, Home

pytestmark = [pytest.mark.as_user, pytest.mark.usefixtures("shared_home")]


def attempt(address: Any) -> str:
    """Connect to an address; return `reached` or the error."""
    family = socket.AF_UNIX if isinstance(address, (str, bytes)) else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(20.0)
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
    def outer(network: Any) -> str:
        return str(isolated(os.readlink).on(network=network)("/proc/self/ns/net"))

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


OUTBOUND = """
import json, os, socket, subprocess, sys
from pathlib import Path
from atoll import errors, isolated, local

def attempt(address):
    with socket.socket() as client:
        client.settimeout(4.0)
        try:
            client.connect((address, 8080))
        except OSError as error:
            return type(error).__name__
        return "reached"

def look(addresses):
    return [attempt(address) for address in addresses], os.readlink("/proc/self/ns/net")

def call(network):
    try:
        return isolated(look).on(network=network)(["203.0.113.9", "172.30.0.1", "169.254.169.254"])
    except errors.AtollError as error:
        return error.code, error.message

found = {str(network): call(network) for network in (None, "outbound", "host")}

@isolated
def outer(network):
    return call(network)

for network in (None, "outbound", "none", "host"):
    found[f"nested {network}"] = outer(network)

found["networks"] = sorted({one["network"] for one in local.request("status", {})["sandboxes"]})
shell = [sys.executable, "-c", "from atoll.cli.main import main; main()", "shell"]
done = subprocess.run(shell, input="cat /etc/resolv.conf", capture_output=True, text=True, check=False)
found["shell"] = done.stdout

pid = json.loads(Path(os.environ["ATOLL_HOME"], "run", "daemon.json").read_text())["pid"]
def carriers():
    names = [name for name in os.listdir("/proc") if name.isdigit()]
    lines = {}
    for name in names:
        try:
            lines[name] = Path("/proc", name, "cmdline").read_bytes().split(b"\\0")
        except OSError:
            pass
    ours = [name for name, line in lines.items() if b"--ns-ifname" in line and b"--args" not in line]
    return [int(name) for name in ours if descends(int(name))]
def descends(one):
    while one > 1 and one != pid:  # other daemons of the machine have carriers, too
        try:
            one = int(Path("/proc", str(one), "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return one == pid
before = carriers()
descriptors = [os.pidfd_open(one) for one in before]
os.kill(pid, 9)
import select
found["carriers"] = len(before)
found["ended"] = [bool(select.select([one], [], [], 60)[0]) for one in descriptors]
print(json.dumps(found))
"""


@pytest.mark.root
def test_outbound_is_the_default_where_it_can_be_made(atoll_home: Home, tmp_path: Path) -> None:
    """Unset is `outbound` there, for calls, calls from inside and shells; all of it ends with a killed daemon."""
    pasta = shutil.which("pasta")
    if pasta is None or shutil.which("ip") is None or not os.path.exists("/dev/net/tun"):
        pytest.skip("needs `pasta`, `ip` and `/dev/net/tun`")
    (atoll_home.path / "settings.toml").write_text(f'[sandbox]\npasta = "{pasta}"\n')
    program = tmp_path / "program.py"
    program.write_text(OUTBOUND)
    world = ["unshare", "--mount", "--net", "--", sys.executable, str(ROOT / "tests/sandbox/world.py")]
    done = subprocess.run(
        [*world, sys.executable, str(program)],
        cwd=tmp_path,
        env=atoll_home.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    inside = ["reached", "OSError", "OSError"]
    assert found["None"] == found["outbound"] == found["nested None"] == found["nested outbound"]
    assert found["None"][0] == inside
    assert found["host"][0] == ["reached", "reached", "reached"]
    assert found["nested none"][0] == ["OSError"] * 3
    assert found["nested host"][0] == "resources_unavailable"
    assert found["networks"] == ["host", "none", "outbound"]
    assert found["shell"].startswith("nameserver 169.254.53.53")
    assert found["carriers"] >= 1
    assert all(found["ended"]), found
    assert "atoll: functions share" not in done.stderr
