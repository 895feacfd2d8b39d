"""The process: a gRPC server on a Unix socket, until its standard input ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import grpc

from atoll.controller.service import Service

MOST_BYTES = (1 << 31) - 1
"""Of a message, both ways."""
OPTIONS = (
    ("grpc.max_send_message_length", MOST_BYTES),
    ("grpc.max_receive_message_length", MOST_BYTES),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),  # clients ping every 30 s, also without data
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),  # its name in the core
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_ping_strikes", 10),  # a client that pings without a rest loses its connection
    ("grpc.so_reuseport", 0),
)
STOP_SECONDS = 1.0
OOM_SCORE = "500"


async def serve(options: dict[str, Any]) -> None:
    """Serve until standard input ends.

    Args:
        options: `listen`, the path of the Unix socket to listen on, and those of `Service`.
    """
    server = grpc.aio.server(options=OPTIONS)
    listen = options.pop("listen")
    service = Service(**options)
    server.add_generic_rpc_handlers((service.handlers(),))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(listen)
    server.add_insecure_port(f"unix:{listen}")
    await server.start()
    os.write(1, b"ready\n")  # to the server that has started this process
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    await ended.wait()
    loop.remove_reader(sys.stdin.fileno())
    await server.stop(STOP_SECONDS)


def main() -> int:
    """Run the process; return its exit status."""
    os.umask(0o077)
    with contextlib.suppress(OSError):  # where memory ends, this goes first, and starts again
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    asyncio.run(serve(json.loads(sys.argv[1])))
    sys.stdout.flush()
    os._exit(0)  # threads that wait for calls would be joined, and their calls end with their lines
