"""The server's process: one for a state directory, whose node it asks in the names of users; `parts` says how parts plug in."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import json
import os
import resource
import socket
from collections.abc import Callable, Iterator

import uvicorn

from atoll import __version__, errors, ownership, settings
from atoll.host import daemon_start
from atoll.sandbox.limits import descriptors
from atoll.server import addresses, http, logs, upgrade
from atoll.server.app import make_app
from atoll.server.edge import Edge
from atoll.server.node import Node
from atoll.server.options import Address, ServerOptions
from atoll.server.parts import PARTS
from atoll.server.state import ServerState
from atoll.settings import Settings

BACKLOG = 1024
DRAIN_SECONDS = 30
"""Seconds that running requests have to end when the server is told to."""


def run(options: ServerOptions, tell: Callable[[str], None]) -> int:
    """Serve until told to end; return the exit status.

    Args:
        tell: takes lines for who started it.

    Raises:
        StateUnusable, StateUntrusted, DiskFull: the state directory cannot be used, or has a server already.
        HostUnreachable: the address cannot be had, or there is no node.
    """
    os.umask(0o077)
    logs.set_up()
    descriptors.raise_own()
    addresses.check_proxies(options.trusted_proxies)
    node_options = settings.load(options.home)
    daemon_start.prepare_home(node_options)
    with _only_one(node_options), contextlib.ExitStack() as stack:
        state = ServerState(Node(node_options), options=options)
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        connections = http.Connections(limit // 2, options.trusted_proxies)
        state.parts["connections"] = connections
        state.lifespan.append(connections.watching)
        for install in PARTS:
            install(state)
        listener = stack.enter_context(_listen(options.listen))
        address = Address(options.listen.host, listener.getsockname()[1])
        url = f"{'https' if options.certificate else 'http'}://{address}"
        server = uvicorn.Server(_config(state))
        with _described(node_options, url):
            gc.freeze()  # the modules stay: no collection looks at them again
            tell(f"listening on {url}")
            for line in state.notices:
                tell(line)
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                runner.run(server.serve(sockets=[listener]))
    return 0


def _config(state: ServerState) -> uvicorn.Config:
    options = state.options
    return uvicorn.Config(
        Edge(make_app(state), state, state.parts["metrics"].observe),
        http=http.bound(state.parts["connections"]),
        ws=upgrade.bound(state, state.parts["sessions"]),
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        ssl_certfile=options.certificate,
        ssl_keyfile=options.key,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # half as fast without
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _listen(address: Address) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        return socket.create_server((address.host, address.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise errors.HostUnreachable(
            f"cannot listen on `{address}`: {error.strerror or error}", hint="choose another address with `--listen`"
        ) from error


@contextlib.contextmanager
def _only_one(options: Settings) -> Iterator[None]:
    """Hold the lock of the state directory's one server.

    Raises:
        StateUnusable: another server has it.
    """
    with ownership.directory(options.run_directory) as run:
        descriptor = run.open("server.lock", os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise errors.StateUnusable(
                f"`{options.home}` has a running server", hint="end that one first, or give another `--home`"
            ) from None
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _described(options: Settings, url: str) -> Iterator[None]:
    """Keep `run/server.json` while the server runs: its address and process."""
    path = options.run_directory / "server.json"
    path.write_text(json.dumps({"pid": os.getpid(), "version": __version__, "url": url}))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
