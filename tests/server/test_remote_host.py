"""The remote host: drops, failures with a named error, proxies, forks, and platforms without Linux's modules."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import pickle
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from atoll import Host, errors, isolated
from atoll.cli.accounts import client
from atoll.credentials import Credentials
from atoll.host.remote import patience
from atoll.host.remote.server import Server as Reached

from ..conftest import needs_outbound
from ..waiting import until
from .certificates import Authority
from .drops import DropProxy
from .process import Server

CALLS = 400 if os.environ.get("SOAK") else 30


def host_of(server: Server, port: int = 0, **changes: str) -> Host:
    """Return the host that the server is, at its own port or at a proxy's."""
    key_id, key_secret = server.key
    given = {"key_id": key_id, "key_secret": key_secret, "ca_file": str(server.ca_file), **changes}
    return Host(f"https://127.0.0.1:{port or server.port}", **given)


@pytest.fixture
def drops(server: Server) -> Iterator[DropProxy]:
    with contextlib.closing(DropProxy(server.port)) as found:
        yield found


def _work(token: str, data: bytes, size: int) -> tuple[str, str, bytes]:
    import hashlib

    with open("/data/drops", "a") as file:
        file.write(token + "\n")
    print("printed by", token)
    return token, hashlib.blake2b(data).hexdigest(), b"y" * size


def _items(count: int) -> Iterator[tuple[int, bytes]]:
    for number in range(count):
        yield number, b"z" * 100_000


def _lines(path: str) -> list[str]:
    with open(path) as file:
        return file.read().split()


@needs_outbound
def test_no_drop_loses_or_repeats_anything(server: Server, drops: DropProxy, capfd: Any) -> None:
    """Connections are lost at any byte: each call runs once and its answer, items and output are whole."""
    host = host_of(server, drops.port)
    work = isolated(host=host, keep_alive=60)(_work)
    chance = random.Random(2)
    work("first", b"", 0)
    drops.drop_at_random(1, 0.1)
    for number in range(CALLS):
        data, size = chance.randbytes(chance.choice([10, 1000, 300_000, 2 << 20])), chance.choice([10, 300_000])
        token, digest, back = work(f"t{number}", data, size)
        assert (token, digest, len(back)) == (f"t{number}", hashlib.blake2b(data).hexdigest(), size)
    items = [(number, len(data)) for number, data in isolated(host=host)(_items)(30)]
    assert items == [(number, 100_000) for number in range(30)]
    tokens = isolated(host=host)(_lines)("/data/drops")
    host.close()
    assert drops.drops > CALLS // 10
    assert tokens == ["first", *(f"t{number}" for number in range(CALLS))]
    printed = capfd.readouterr().out.splitlines()
    assert [line for line in printed if line.startswith("printed")] == [f"printed by {token}" for token in tokens]


def _mark(path: str) -> None:
    import time

    with open(path, "a") as file:
        file.write("ran\n")
    time.sleep(600)


@needs_outbound
def test_a_line_that_is_lost_for_good_is_an_error_with_the_calls_id(
    server: Server, drops: DropProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call is not made a second time."""
    monkeypatch.setenv(patience.VARIABLE, "0.5")
    direct = host_of(server)
    mark, lines = isolated(host=host_of(server, drops.port))(_mark), isolated(host=direct)(_lines)
    lines_before = isolated(host=direct)(lambda: open("/data/lost", "w").close())
    lines_before()
    failed: list[BaseException] = []

    def call() -> None:
        try:
            mark("/data/lost")
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    until(lambda: lines("/data/lost"))
    drops.refuses = True
    drops.drop()
    thread.join(60)
    (error,) = failed
    assert isinstance(error, errors.HostUnreachable)
    assert errors.call_id(error)
    assert errors.call_id(error) in str(error)
    assert lines("/data/lost") == ["ran"]
    direct.close()


def _double(number: int) -> int:
    return 2 * number


@needs_outbound
def test_a_connection_lost_between_calls_is_no_matter(server: Server, drops: DropProxy) -> None:
    """The lease is found again by the next call, in the same worker."""
    host = host_of(server, drops.port)
    pid = isolated(host=host, keep_alive=60)(os.getpid)
    first = pid()
    for _ in range(3):
        assert drops.drop()
        assert pid() == first
    host.close()


@needs_outbound
def test_a_real_mask_hides_what_travels_in_the_open(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """As past loopback and without TLS."""
    monkeypatch.setattr(Reached, "hides", True)
    host = host_of(server)
    data = os.urandom(700_001)
    assert isolated(host=host)(lambda data: data[::-1])(data) == data[::-1]
    host.close()


# --- failures ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """Answer each connection's request with these bytes; yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(65536)
                        connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
    thread.join(30)


def refusal(host: Host) -> errors.AtollError:
    """Return the error of a call on a host."""
    with pytest.raises(errors.AtollError) as caught:
        isolated(host=host)(_double)(1)
    return caught.value


def test_each_failure_to_connect_names_the_next_step(server: Server, tmp_path: Any) -> None:
    """Nobody there, another authority, another key, TLS where there is none, and servers of other kinds."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert "nothing listens" in refusal(host_of(server, port)).message
    other = Authority(tmp_path)
    found = refusal(host_of(server, ca_file=str(other.ca_file)))
    assert isinstance(found, errors.HostUnreachable)
    assert "certificate" in found.message
    assert "ca_file" in found.hint
    found = refusal(host_of(server, key_secret="x" * 43))
    assert isinstance(found, errors.NotAuthorized)
    assert server.key[1] not in str(found)
    key = {"key_id": "a", "key_secret": "b"}
    plain = refusal(Host(f"https://127.0.0.1:{port_of_plain()}", **key))
    assert "TLS" in plain.message
    assert "`http://127.0.0.1:" in plain.hint
    named = Host(f"{server.url}/foo", key_id=server.key[0], key_secret=server.key[1], ca_file=str(server.ca_file))
    refused = [refusal(named)]
    with pytest.raises(errors.HostUnreachable) as caught:
        named.request("status", {})
    for found in (*refused, caught.value):
        assert "no Atoll server" in found.message
        assert found.hint == "leave `/foo` out of the address"
    with pytest.raises(errors.HostUnreachable, match="does not speak TLS") as caught:
        client.ask(Credentials(f"https://127.0.0.1:{port_of_plain()}", "a", "b"), "GET", "/v1/whoami")
    assert "`http://127.0.0.1:" in caught.value.hint
    for answer, text in {
        b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno": "no Atoll server",
        b"SSH-2.0-OpenSSH_9\r\n": "cannot reach",
        b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n": "proxy",
        b"HTTP/1.1 426 Upgrade Required\r\ncontent-length: 0\r\n\r\n": "426",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n": "upgrade",
        b'HTTP/1.1 426 Upgrade Required\r\n\r\n{"error": {"code": "protocol_mismatch", "message": "speaks 7", '
        b'"hint": "upgrade atoll here", "details": {}}}': "speaks 7",
    }.items():
        with answering(answer) as port:
            assert text in refusal(Host(f"http://127.0.0.1:{port}", **key)).message
    host = Host("https://no.such.host.invalid", **key)
    assert "no machine is called" in refusal(host).message


def test_an_upload_that_is_refused_early_names_the_reason(server: Server) -> None:
    """The answer counts, not the connection that broke while the body was on its way."""
    body = bytes(32 << 20)
    full = (
        b'HTTP/1.1 507 Insufficient Storage\r\nconnection: close\r\n\r\n{"error": {"code": "disk_full", '
        b'"message": "the server\'s disk is full", "hint": "ask its operator", "details": {}}}'
    )
    with answering(full) as port:
        reached = Reached(Credentials(f"http://127.0.0.1:{port}", "a", "b"))
        with pytest.raises(errors.DiskFull, match="the server's disk is full"):
            reached.put("/v1/packages/x/y.whl", body, len(body))
    reached = Reached(Credentials(server.url, server.key[0], "x" * 43, str(server.ca_file)))
    with pytest.raises(errors.NotAuthorized, match="the key is not valid"):
        reached.put(f"/v1/packages/{'0' * 64}/y-1-py3-none-any.whl", body, len(body))


def test_a_proxy_without_its_server_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that changes nothing is made until the server is there; one that may have arrived is made once."""
    monkeypatch.setenv(patience.VARIABLE, "60")
    gone, there = b"HTTP/1.1 502 Bad Gateway\r\n", b"HTTP/1.1 200 OK\r\n"
    answers = [gone, gone, there, gone]
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    head = connection.recv(65536)
                    if b"\r\n\r\n{}" not in head:
                        connection.recv(65536)
                    connection.sendall(answer + b"content-length: 2\r\n\r\n{}")

        thread = threading.Thread(target=serve)
        thread.start()
        host = Host(f"http://127.0.0.1:{listener.getsockname()[1]}", key_id="a", key_secret="b")
        assert host.request("status", {}) == {}
        with pytest.raises(errors.HostUnreachable, match="the proxy does not reach the server"):
            host.request("secrets.delete", {})
        thread.join(60)


def port_of_plain() -> int:
    """Return the port of a server without TLS, which goes on until the process ends."""
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(answering(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
        _kept.append(stack.pop_all())
    return port


_kept: list[contextlib.ExitStack] = []


@pytest.fixture(autouse=True)
def _close_kept() -> Iterator[None]:
    yield
    while _kept:
        _kept.pop().close()


@contextlib.contextmanager
def connect_proxy() -> Iterator[tuple[int, list[str]]]:
    """Run a proxy that knows `CONNECT` alone; yield its port and the first lines of its requests."""
    heads: list[str] = []
    passed: list[DropProxy] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve(near: socket.socket) -> None:
            head = b""
            while b"\r\n\r\n" not in head:
                head += near.recv(65536)
            heads.append(head.decode())
            port = int(head.split(b" ")[1].rpartition(b":")[2])
            with near, socket.create_connection(("127.0.0.1", port)) as far:
                near.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
                proxy = DropProxy.__new__(DropProxy)
                proxy._lock, proxy._open = threading.Lock(), set()
                proxy._pass_on(near, far)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    near, _ = listener.accept()
                    thread = threading.Thread(target=serve, args=(near,), daemon=True)
                    threads.append(thread)
                    thread.start()

        threads = [threading.Thread(target=accept, daemon=True)]
        threads[0].start()
        try:
            yield listener.getsockname()[1], heads
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            del passed
    for thread in threads:
        thread.join(30)


@needs_outbound
def test_a_proxy_of_the_environment_is_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """`HTTPS_PROXY` takes lines and requests by `CONNECT`; `NO_PROXY` and this machine's own names go without."""
    monkeypatch.setattr("atoll.host.remote.proxies.is_loopback", lambda host: False)
    with connect_proxy() as (port, heads):
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:pass%21@127.0.0.1:{port}")
        host = host_of(server)
        assert isolated(host=host)(_double)(4) == 8
        assert "workers" in host.request("status", {})
        host.close()
        assert len(heads) == 2
        assert all(f"CONNECT 127.0.0.1:{server.port} " in head for head in heads)
        assert all("Proxy-Authorization: Basic dXNlcjpwYXNzIQ==" in head for head in heads)
        monkeypatch.setenv("NO_PROXY", "example.com, 127.0.0.0/8")
        assert isolated(host=host)(_double)(5) == 10
        host.close()
        assert len(heads) == 2


# --- where the host goes ----------------------------------------------------------------------------------------------


@needs_outbound
def test_no_key_is_in_a_pickle_and_a_function_calls_on_its_own_machine(server: Server) -> None:
    """A function that calls another one takes no key into the sandbox."""
    host = host_of(server)
    data = pickle.dumps(host)
    assert all(half.encode() not in data for half in server.key)
    inner = isolated(host=host)(_double)

    def outer(number: int) -> tuple[int, str]:
        return inner(number), repr(inner.options.host)

    assert isolated(host=host)(outer)(3) == (6, "local")
    host.close()


def _in_child(host: Host, double: Any, answers: Any) -> None:
    answers.put(double(2))


@needs_outbound
def test_a_forked_child_has_connections_of_its_own(server: Server) -> None:
    """The parent's lease is the parent's: both call on, and the child's end says nothing on it."""
    host = host_of(server)
    pid = isolated(host=host, keep_alive=60)(os.getpid)
    double = isolated(host=host)(_double)
    first = pid()
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(host, double, answers))
    child.start()
    assert answers.get() == 4
    child.join(60)
    assert pid() == first
    host.close()


PROGRAM = """
import builtins, importlib.abc, select, socket, sys, os, time

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ("fcntl", "termios", "pwd", "grp", "resource", "syslog"):
            raise ImportError(f"{name} is not on this platform")

sys.meta_path.insert(0, Refuse())
for name in ("fcntl", "termios", "pwd", "grp", "resource"):
    sys.modules.pop(name, None)
del select.poll, select.epoll, socket.AF_UNIX, os.memfd_create
for name in ("getuid", "geteuid", "fork", "register_at_fork", "sysconf"):
    if hasattr(os, name):
        delattr(os, name)

from atoll import Host, isolated

def items(n):
    for i in range(n):
        print("item", i)
        yield i

def main():
    host = Host()
    assert isolated(host=host)(lambda data: len(data))(b"x" * 3_000_000) == 3_000_000
    assert list(isolated(host=host)(items)(3)) == [0, 1, 2]
    assert list(isolated(host=host)(lambda x: x + 1).map(range(30))) == list(range(1, 31))
    try:
        isolated(host=host)(lambda: 1 / 0)()
    except ZeroDivisionError:
        print("raised")
    waiting = isolated(host=host)(lambda: __import__("time").sleep(600)).submit()
    while not (found := host.request("calls.running", {})["calls"]) or not found[0]["worker"]:
        time.sleep(0.02)
    from atoll.cli.programs.shell import run_on_own_streams
    run = lambda own, terminal, begin: host.run_command(waiting.call_id, ["cat"], own, terminal=terminal, on_start=begin)
    assert run_on_own_streams(run) == 0
    host.request("calls.cancel", {"call": waiting.call_id})
    handle = isolated(lambda: "kept").spawn()
    assert handle.result(60) == "kept"
    host.close()

main()
"""


@needs_outbound
def test_a_platform_without_linuxs_modules_is_enough(server: Server, tmp_path: Any) -> None:
    """No `fcntl`, no `select.poll`, no Unix sockets: calls, generators, `map`, errors, commands, detached calls."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    key_id, key_secret = server.key
    variables = {"ATOLL_HOST": server.url, "ATOLL_KEY_ID": key_id, "ATOLL_KEY_SECRET": key_secret}
    run = subprocess.run(
        [sys.executable, str(program)],
        check=False,
        env={**os.environ, **variables, "ATOLL_CA_FILE": str(server.ca_file)},
        input="typed",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.split() == ["item", "0", "item", "1", "item", "2", "raised", "typed"]


@needs_outbound
def test_the_older_names_mean_a_server_and_its_key(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """`FalServerlessHost`, `FalServerlessKeyCredentials`, and the argument `credentials`."""
    from fal_serverless import CloudKeyCredentials, FalServerlessHost, FalServerlessKeyCredentials, cloud, serverless

    assert CloudKeyCredentials is FalServerlessKeyCredentials
    assert serverless is cloud
    key = FalServerlessKeyCredentials(*server.key)
    assert server.key[1] not in repr(key)
    monkeypatch.setenv("ATOLL_CA_FILE", str(server.ca_file))
    assert isolated(host=FalServerlessHost(f"127.0.0.1:{server.port}", key))(_double)(6) == 12
    monkeypatch.setenv("FAL_HOST", f"127.0.0.1:{server.port}")
    assert isolated(credentials=key)(_double)(7) == 14  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="credentials"):
        isolated(credentials="a:b")(_double)  # type: ignore[call-overload]
