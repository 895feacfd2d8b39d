"""The recipes of `deploy/`: calls through nginx, HAProxy, Caddy and Apache, with TLS at the proxy."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ..conftest import ROOT, find_tool
from ..waiting import until
from .functions import Leased
from .process import Server, running

DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def behind() -> Iterator[Server]:
    """A server without TLS, for proxies on this machine."""
    with running("--trusted-proxy", "127.0.0.1", tls=False) as found:
        assert found.key  # made once, for the views of it through proxies
        yield found


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def _recipe(name: str, server: Server, port: int, certificate: Path, key: Path) -> str:
    """Return a recipe with this test's names in place of its own."""
    text = (DEPLOY / name).read_text()
    for own, used in (
        ("127.0.0.1:8080", f"127.0.0.1:{server.port}"),
        ("/etc/ssl/atoll.pem", str(certificate)),
        ("/etc/ssl/atoll.key", str(key)),
        ("listen 443", f"listen 127.0.0.1:{port}"),
        ("bind :443", f"bind 127.0.0.1:{port}"),
        ("*:443", f"127.0.0.1:{port}"),
        ("atoll.example:443", f"127.0.0.1:{port}"),
    ):
        text = text.replace(own, used)
    return text


def _nginx(text: str, place: Path, _port: int) -> list[str]:
    (place / "site.conf").write_text(text)
    temporary = "\n".join(
        f"{name}_temp_path {place}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""
    main = f"{user} daemon off; pid {place}/pid; error_log stderr; events {{}}\nhttp {{ access_log off; {temporary}\ninclude {place}/site.conf; }}"
    (place / "nginx.conf").write_text(main)
    return ["-e", "stderr", "-p", str(place), "-c", str(place / "nginx.conf")]


def _haproxy(text: str, place: Path, _port: int) -> list[str]:
    (place / "haproxy.cfg").write_text(text)
    return ["-db", "-f", str(place / "haproxy.cfg")]


def _caddy(text: str, place: Path, _port: int) -> list[str]:
    (place / "Caddyfile").write_text(text.replace("admin off", "admin off\n\tauto_https disable_redirects"))
    return ["run", "--config", str(place / "Caddyfile"), "--adapter", "caddyfile"]


def _apache(text: str, place: Path, port: int) -> list[str]:
    program = find_tool("apache2") or ""
    modules = next(
        path
        for path in (Path(program).parents[1] / "root" / "usr/lib/apache2/modules", Path("/usr/lib/apache2/modules"))
        if path.is_dir()
    )
    names = ("mpm_event", "authz_core", "socache_shmcb", "ssl", "proxy", "proxy_http", "headers")
    loads = "\n".join(f"LoadModule {name}_module {modules}/mod_{name}.so" for name in names)
    user = "User nobody\nGroup nogroup\n" if os.geteuid() == 0 else ""
    head = f"{loads}\n{user}ServerRoot {place}\nPidFile {place}/pid\nErrorLog /dev/stderr\nListen 127.0.0.1:{port}\nDefaultRuntimeDir {place}\n"
    (place / "apache.conf").write_text(head + text)
    return ["-d", str(place), "-f", str(place / "apache.conf"), "-DFOREGROUND"]


PROXIES = {
    "nginx": ("nginx.conf", _nginx),
    "haproxy": ("haproxy.cfg", _haproxy),
    "caddy": ("Caddyfile", _caddy),
    "apache2": ("apache.conf", _apache),
}


@pytest.fixture(params=PROXIES)
def proxied(request: pytest.FixtureRequest, behind: Server, tmp_path: Path) -> Iterator[Server]:
    """The server as its clients see it through a proxy."""
    name = request.param
    program = find_tool(name)
    if program is None:
        pytest.skip(f"{name} is not installed; `.ci/tools` unpacks Debian's")
    tmp_path.chmod(0o755)
    certificate, key = behind.authority.issue("proxy")
    if name == "haproxy":
        both = tmp_path / "both.pem"
        both.write_bytes(certificate.read_bytes() + key.read_bytes())
        certificate = both
    port = _free_port()
    recipe, arguments_of = PROXIES[name]
    arguments = arguments_of(_recipe(recipe, behind, port, certificate, key), tmp_path, port)
    variables = {**os.environ, "HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    log = tmp_path / "log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [program, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=variables
        )
    seen = replace(behind, port=port, tls=True)
    try:

        def answers() -> bool:
            assert process.poll() is None, log.read_text()[-3000:]
            with contextlib.suppress(OSError):
                return bool(seen.ask("GET", "/healthz", headers={})[0] == 200)
            return False

        until(answers)
        yield seen
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _reversed(data: bytes) -> bytes:
    print("reversing", len(data))
    return data[::-1]


def test_calls_pass_a_proxy(proxied: Server) -> None:
    """A call with a payload, its output and a request pass, and a lost connection is resumed."""
    data = os.urandom(1 << 20)
    leased = Leased(proxied, _reversed, data)
    with contextlib.closing(leased.line):
        leased.line.drop_after(600_000)
        assert leased.call() == data[::-1]
        assert leased.line.printed[1] == b"reversing 1048576\n"
        assert leased.line.drops == 1
    assert proxied.ask("POST", "/v1/requests/status", b"{}")[0] == 200
    assert proxied.ask("POST", "/v1/requests/status", b" " * (2 << 20))[0] == 413
