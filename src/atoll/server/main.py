"""The server's process: one for a state directory, whose node it asks in the names of users; `parts` says how parts plug in."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

import uvicorn

from atoll import settings
from atoll.daemon import shared_uid
from atoll.daemon.request_arguments import MOST_DIGITS
from atoll.host import daemon_start
from atoll.sandbox.limits import descriptors
from atoll.server import addresses, http, logs, upgrade
from atoll.server.app import make_app
from atoll.server.controller.part import SOCKET
from atoll.server.edge import Edge, Ends
from atoll.server.endpoints.lean import Lean
from atoll.server.node import Node
from atoll.server.options import Address, ServerOptions
from atoll.server.parts import PARTS
from atoll.server.process import handshake, listening, lock
from atoll.server.process.loop import loop_factory
from atoll.server.process.tls import Certificates
from atoll.server.state import ServerState

DRAIN_SECONDS = 5
"""Seconds that running requests have to end when the server is told to: lines wait for the next one meanwhile."""


def run(options: ServerOptions, tell: Callable[[str], None]) -> int:
    """Serve until told to end; return the exit status.

    Args:
        tell: takes lines for who started it.

    Raises:
        StateUnusable, StateUntrusted, DiskFull: the state directory cannot be used, or has a server already.
        HostUnreachable: the address cannot be had, or there is no node.
    """
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would have keys and secrets in it
    sys.set_int_max_str_digits(MOST_DIGITS)
    logs.set_up()
    descriptors.raise_own()
    addresses.check_proxies(options.trusted_proxies)
    node_options = settings.load(options.home)
    daemon_start.prepare_home(node_options)
    with lock.only_one(node_options), listening.listen(options.listen) as listener:
        shared_uid.remember(node_options, consents=options.share_uid)
        state = ServerState(Node(node_options), options=options)
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        connections = http.Connections(limit // 2, options.trusted_proxies)
        state.parts["connections"] = connections
        state.lifespan.append(connections.watching)
        for install in PARTS:
            install(state)
        address = Address(options.listen.host, listener.getsockname()[1])
        url = f"{'https' if options.certificate else 'http'}://{address}"
        if not options.certificate and not _is_loopback(options.listen.host):
            state.notices.append("warning: without TLS, keys and data can be read on the way; see `--tls-cert`")

        def ready() -> None:
            lock.describe(node_options, url)
            tell(f"listening on {url}")
            for line in state.notices:
                tell(line)

        inner = node_options.home / "run" / SOCKET, http.bound(connections)
        server = listening.Server(_config(state), ready, inner if "grpc" in state.parts else None)
        gc.freeze()  # the modules stay: no collection looks at them again
        try:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                runner.run(server.serve(sockets=[listener]))
        finally:
            lock.forget(node_options)
    return 0


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _config(state: ServerState) -> uvicorn.Config:
    options = state.options
    grpc = state.parts.get("grpc")
    app, ends = make_app(state), Ends(state.parts["metrics"].observe)
    state.lifespan.append(ends.lines.written)
    protocol: Any = http.bound(state.parts["connections"], grpc, Lean(state, app, ends))
    if options.certificate is not None and options.key is not None:
        certificates = Certificates(options.certificate, options.key, grpc=grpc is not None)
        state.lifespan.append(certificates.watching)
        protocol = handshake.secured(protocol, certificates.context)
    return uvicorn.Config(
        Edge(app, state, ends),
        http=protocol,
        ws=upgrade.bound(state, state.parts["sessions"]),
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
