"""A server on one machine and its clients on another: network namespaces with a cable between them, made by the test."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import ROOT, find_tool, own_home
from .certificates import Authority
from .machines import COMMAND, SERVER, serving, two_machines, user_of

pytestmark = pytest.mark.root

PORT, PROXY_PORT = 8443, 9443

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


def test_two_people_use_a_server_from_another_machine(tmp_path: Path) -> None:
    """The first examples run there over TLS with a private authority; each has a `/data` alone; nginx in front changes nothing."""
    with contextlib.ExitStack() as stack:
        there, here = stack.enter_context(two_machines())
        home = stack.enter_context(own_home())
        authority = Authority(tmp_path)
        certificate, key = authority.issue("server", SERVER)
        command = [sys.executable, "-c", COMMAND, "server", "--listen", f"{SERVER}:{PORT}"]
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
