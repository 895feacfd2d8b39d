"""A server on one machine and its clients on another: network namespaces with a cable between them, made by the test."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..conftest import ROOT, Home, find_tool, own_home
from ..waiting import PATIENCE_SECONDS, until
from .certificates import Authority

pytestmark = pytest.mark.root

SERVER, CLIENT = "10.77.0.1", "10.77.0.2"
PORT, PROXY_PORT = 8443, 9443
_COMMAND = "import sys; from atoll.cli.main import main; sys.exit(main())"
_HOLDER = "import sys; print('ready', flush=True); sys.stdin.read()"

PROGRAM = f"""
import os, socket, sys
sys.path.insert(0, {str(ROOT / "examples")!r})
from on_cloud import preferences_on_cloud, upload_to_cloud
from atoll import cloud, isolated

if sys.argv[1] == "writes":
    preferences_on_cloud()
    upload_to_cloud()

@isolated(host=cloud)
def seen():
    return sorted(os.listdir("/data")), os.getuid()

@isolated(host=cloud)
def numbers(count):
    for number in range(count):
        yield number * 2

names, uid = seen()
print("sees", *(name for name in names if not name.startswith(".")))
print("uid", uid != 0)
print(list(numbers(3)), list(isolated(host=cloud)(abs).map(range(-50, 0)))[:2])
with open("/proc/self/net/dev") as devices:
    print("here", sorted(line.split(":")[0].strip() for line in devices if ":" in line))
"""

NGINX = """
daemon off; {user} pid {place}/pid; error_log stderr; events {{}}
http {{
  access_log off; client_max_body_size 0; proxy_http_version 1.1; proxy_request_buffering off; proxy_buffering off;
  client_body_temp_path {place}/body; proxy_temp_path {place}/proxy; fastcgi_temp_path {place}/fastcgi;
  uwsgi_temp_path {place}/uwsgi; scgi_temp_path {place}/scgi;
  map $http_upgrade $connection_header {{ default upgrade; '' close; }}
  server {{
    listen {address}:{port} ssl; ssl_certificate {certificate}; ssl_certificate_key {key};
    location / {{
      proxy_pass https://{address}:{upstream};
      proxy_set_header Host $http_host;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_header;
    }}
  }}
}}
"""


@dataclass
class Machine:
    """A network namespace, held by a process."""

    pid: int

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of a program on this machine."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", *arguments]

    def ip(self, *arguments: str) -> None:
        subprocess.run(self.command("ip", *arguments), check=True)


@contextlib.contextmanager
def machine() -> Iterator[Machine]:
    """Make a machine without any network but its loopback."""
    command = ["unshare", "--net", sys.executable, "-c", _HOLDER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == b"ready\n"
            made = Machine(holder.pid)
            made.ip("link", "set", "lo", "up")
            yield made
        finally:
            holder.kill()


@contextlib.contextmanager
def serving(where: Machine, command: list[str], log: Path, environment: dict[str, str], port: int) -> Iterator[None]:
    """Run a server on a machine, from the moment at which it listens."""
    with open(log, "ab") as output:
        process = subprocess.Popen(
            where.command(*command), stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        )
    try:

        def listens() -> bool:
            assert process.poll() is None, log.read_text()
            sockets = Path(f"/proc/{where.pid}/net/tcp").read_text().splitlines()[1:]
            return any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in sockets)

        until(listens)
        yield
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_SECONDS)
        finally:
            process.kill()
            process.wait()


def user_of(home: Home, name: str) -> dict[str, str]:
    """Add a user; return the variables of the key."""
    from atoll.server.accounts.bodies import NewUser
    from atoll.server.accounts.direct import Direct

    with Direct(home.path) as accounts:
        key = accounts.add_user(NewUser(name)).key
    assert key is not None
    return {"ATOLL_KEY_ID": key.id, "ATOLL_KEY_SECRET": key.secret}


def test_two_people_use_a_server_from_another_machine(tmp_path: Path) -> None:
    """The first examples run there over TLS with a private authority; each has a `/data` alone; nginx in front changes nothing."""
    if shutil.which("ip") is None or shutil.which("nsenter") is None:
        pytest.skip("`ip` and `nsenter` are not installed")
    with contextlib.ExitStack() as stack:
        there, here = stack.enter_context(machine()), stack.enter_context(machine())
        cable = ["link", "add", "cable", "netns", str(there.pid), "type", "veth"]
        subprocess.run(["ip", *cable, "peer", "name", "cable", "netns", str(here.pid)], check=True)
        for place, address in ((there, SERVER), (here, CLIENT)):
            place.ip("address", "add", f"{address}/24", "dev", "cable")
            place.ip("link", "set", "cable", "up")
        there.ip("route", "add", "default", "via", CLIENT)
        home = stack.enter_context(own_home())
        authority = Authority(tmp_path)
        certificate, key = authority.issue("server", SERVER)
        command = [sys.executable, "-c", _COMMAND, "server", "--listen", f"{SERVER}:{PORT}"]
        command += ["--tls-cert", str(certificate), "--tls-key", str(key)]
        log = home.path / "server.log"
        stack.enter_context(serving(there, command, log, home.environment(), PORT))
        people = {name: user_of(home, name) for name in ("ada", "bob")}
        (tmp_path / "program.py").write_text(PROGRAM)

        def run(name: str, port: int, does: str) -> list[str]:
            variables = {
                **people[name],
                "ATOLL_HOST": f"https://{SERVER}:{port}",
                "ATOLL_CA_FILE": str(authority.ca_file),
            }
            environment = {**os.environ, **variables, "ATOLL_HOME": str(tmp_path / name)}
            done = subprocess.run(
                here.command(sys.executable, str(tmp_path / "program.py"), does),
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{log.read_text()[-3000:]}"
            return done.stdout.splitlines()

        last = ["uid True", "[0, 2, 4] [50, 49]", "here ['cable', 'lo']"]
        seed = ["customers.csv", "orders.csv", "readme.txt"]
        shown = run("ada", PORT, "writes")
        assert shown[1] == "another call reads: hiking, jazz, black tea"
        assert shown[2:6] == ["uploaded to /data/sync/remote_dir", *seed]
        assert shown[6:] == ["sees sync user_7_preferences.txt", *last]
        assert run("bob", PORT, "looks") == ["sees", *last]
        if program := find_tool("nginx"):
            text = NGINX.format(
                user="user root;",
                place=tmp_path,
                address=SERVER,
                port=PROXY_PORT,
                upstream=PORT,
                certificate=certificate,
                key=key,
            )
            (tmp_path / "nginx.conf").write_text(text)
            proxy = [program, "-e", "stderr", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
            stack.enter_context(serving(there, proxy, tmp_path / "nginx.log", dict(os.environ), PROXY_PORT))
            assert run("ada", PROXY_PORT, "looks") == ["sees sync user_7_preferences.txt", *last]
        assert json.loads((home.path / "run" / "server.json").read_text())["url"] == f"https://{SERVER}:{PORT}"
