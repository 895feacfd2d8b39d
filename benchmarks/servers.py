"""Servers that the remote benchmark needs: a bare Starlette endpoint on the same uvicorn, nginx in front, and sshd."""

from __future__ import annotations

import contextlib
import http.client
import os
import pwd
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

START_SECONDS = 30.0
TOOLS = Path(__file__).parents[1] / ".venv" / "tools"
NGINX = """
daemon off;
worker_processes 1;
pid {place}/nginx.pid;
error_log {place}/nginx.log;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {place}/body;
  proxy_temp_path {place}/proxy;
  fastcgi_temp_path {place}/fastcgi;
  uwsgi_temp_path {place}/uwsgi;
  scgi_temp_path {place}/scgi;
  client_max_body_size 0;
  proxy_http_version 1.1;
  proxy_request_buffering off;
  proxy_buffering off;
  proxy_buffer_size 64k;
  proxy_buffers 8 64k;
  map $http_upgrade $connection_header {{ default upgrade; '' ''; }}
  upstream bare {{ server 127.0.0.1:{bare}; keepalive 64; }}
  upstream atoll {{ server 127.0.0.1:{atoll}; keepalive 64; }}
  ssl_certificate {certificate};
  ssl_certificate_key {key};
  server {{
    listen 127.0.0.1:{plain};
    keepalive_requests 1000000;
    proxy_set_header Host $http_host;
    proxy_set_header Connection '';
    location /echo {{ proxy_pass http://bare; }}
    location /static/ {{ alias {place}/static/; sendfile on; }}
  }}
  server {{
    listen 127.0.0.1:{listen} ssl;
    keepalive_requests 1000000;
    proxy_set_header Host $http_host;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection $connection_header;
    location /echo {{ proxy_pass http://bare; }}
    location /static/ {{ alias {place}/static/; sendfile on; }}
    location / {{ proxy_pass http://atoll; proxy_read_timeout 3600s; }}
  }}
}}
"""

_REQUEST = (
    "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=bench "
    "-addext subjectAltName=IP:127.0.0.1"
)
ECHO = """
import sys, uvicorn
from starlette.applications import Starlette
from starlette.responses import FileResponse, Response
from starlette.routing import Route

async def echo(request):
    return Response(await request.body())

async def file(request):
    return FileResponse(sys.argv[2])

app = Starlette(routes=[Route("/echo", echo, methods=["POST"]), Route("/file", file)])
uvicorn.run(
    app, host="127.0.0.1", port=int(sys.argv[1]), http="httptools", loop="uvloop", access_log=False, log_level="error",
    timeout_keep_alive=3600,
)
"""


def free_port() -> int:
    """Return a port of loopback that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server that listens on a port of loopback."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), timeout=5).close()
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command[0]} does not listen")
                time.sleep(0.05)
            yield process
        finally:
            process.terminate()


@contextlib.contextmanager
def bare_echo(file: Path) -> Iterator[tuple[str, int]]:
    """Run a bare Starlette endpoint; give its address and process."""
    port = free_port()
    with running([sys.executable, "-c", ECHO, str(port), str(file)], port) as process:
        yield f"http://127.0.0.1:{port}", process.pid


def find_program(name: str) -> str | None:
    """Return the path of a program, of the machine or as `.ci/tools` has unpacked it."""
    return shutil.which(
        name, path=os.pathsep.join([str(TOOLS / "bin"), os.environ.get("PATH", os.defpath), "/usr/sbin"])
    )


def use_unpacked_pasta() -> None:
    """Let the node find the pasta that `.ci/tools` has unpacked: it cannot use the wrapper beside."""
    unpacked = TOOLS / "root" / "usr" / "bin"
    if shutil.which("pasta") is None and os.access(unpacked / "pasta", os.X_OK):
        os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{unpacked}"


@dataclass(frozen=True)
class Front:
    """nginx before both servers.

    Args:
        address: with TLS.
        plain: the address without, for the echo and the directory `static` alone.
        authority: the file of the certificate's authority.
    """

    address: str
    plain: str
    authority: str


@contextlib.contextmanager
def nginx(place: Path, bare: str, atoll: str) -> Iterator[Front | None]:
    """Run nginx before both servers, and before the directory `static` of `place`; None where it is not here."""
    program = find_program("nginx")
    if program is None or shutil.which("openssl") is None:
        yield None
        return
    certificate, key, port, plain = place / "cert.pem", place / "key.pem", free_port(), free_port()
    (place / "static").mkdir(exist_ok=True)
    command = f"openssl {_REQUEST} -keyout {key} -out {certificate}"
    subprocess.run(command.split(), check=True, capture_output=True)
    text = NGINX.format(
        place=place,
        bare=urlsplit(bare).port,
        atoll=urlsplit(atoll).port,
        listen=port,
        plain=plain,
        certificate=certificate,
        key=key,
    )
    if os.geteuid() == 0:
        text = f"user root;\n{text}"
    (place / "nginx.conf").write_text(text)
    with running([program, "-e", str(place / "nginx.log"), "-p", str(place), "-c", str(place / "nginx.conf")], port):
        yield Front(f"https://127.0.0.1:{port}", f"http://127.0.0.1:{plain}", str(certificate))


@contextlib.contextmanager
def sshd(place: Path) -> Iterator[list[str] | None]:
    """Run OpenSSH's server on loopback with keys of its own; give the command of a client, or None where it is not here.

    The server of root wants an account and a directory that its package makes. Where they are not here, it gets them in
    a mount namespace of its own.
    """
    programs = {name: find_program(name) for name in ("sshd", "ssh", "ssh-keygen")}
    if None in programs.values():
        yield None
        return
    keys, port = place / "ssh", free_port()
    keys.mkdir(mode=0o700)
    for name in ("host", "user"):
        command = [str(programs["ssh-keygen"]), "-q", "-t", "ed25519", "-N", "", "-f", str(keys / name)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    options = [
        f"HostKey={keys / 'host'}",
        f"AuthorizedKeysFile={keys / 'user.pub'}",
        f"ListenAddress=127.0.0.1:{port}",
        f"PidFile={keys / 'pid'}",
        "PermitRootLogin=yes",
        "StrictModes=no",
        "UsePAM=no",
        "PasswordAuthentication=no",
    ]
    server = [str(programs["sshd"]), "-D", "-f", "/dev/null", *(f"-o{option}" for option in options)]
    if os.geteuid() == 0 and not (_has_account("sshd") and os.path.isdir("/run/sshd")):
        accounts = keys / "passwd"
        accounts.write_text(Path("/etc/passwd").read_text() + "sshd:x:65534:65534::/run/sshd:/usr/sbin/nologin\n")
        steps = f"mount -t tmpfs none /run && mkdir -m 755 /run/sshd && mount --bind {accounts} /etc/passwd && exec "
        server = ["unshare", "--mount", "sh", "-c", steps + '"$@"', "sh", *server]
    client = [str(programs["ssh"]), "-F", "none", "-p", str(port), "-i", str(keys / "user"), "-oIdentitiesOnly=yes"]
    client += ["-oStrictHostKeyChecking=no", f"-oUserKnownHostsFile={keys / 'known'}", "-oLogLevel=ERROR"]
    try:
        with running(server, port):
            yield client
    except RuntimeError:
        yield None


def _has_account(name: str) -> bool:
    try:
        return bool(pwd.getpwnam(name))
    except KeyError:
        return False


class Echo:
    """The endpoint, asked over one connection by `http.client`.

    Args:
        address: of the server.
        authority: the file of its certificates, for TLS.
    """

    def __init__(self, address: str, authority: str = "") -> None:
        parts = urlsplit(address)
        assert parts.hostname is not None
        self._path = parts.path
        self._connection: http.client.HTTPConnection
        if authority:
            context = ssl.create_default_context(cafile=authority)
            self._connection = http.client.HTTPSConnection(parts.hostname, parts.port, context=context)
        else:
            self._connection = http.client.HTTPConnection(parts.hostname, parts.port)

    def call(self, body: bytes) -> bytes:
        self._connection.request("POST", self._path + "/echo", body)
        return self._connection.getresponse().read()

    def read_file(self) -> int:
        """Return the size of the endpoint's file, read whole."""
        self._connection.request("GET", "/file")
        answer, size = self._connection.getresponse(), 0
        while data := answer.read(1 << 20):
            size += len(data)
        return size

    def close(self) -> None:
        self._connection.close()


def memory_of(*pids: int) -> float:
    """Return the resident memory of processes in MiB."""
    pages = 0
    for pid in pids:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            pages += int(file.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def cpu_of(pid: int) -> float:
    """Return the seconds that processors have worked for a process."""
    nanoseconds = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            nanoseconds += int((task / "schedstat").read_text().split()[0])
    return nanoseconds / 1e9
