"""TLS by files, which are read again when they change or at SIGHUP: renewed certificates need no restart."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

from atoll import errors
from atoll.server.process.background import in_background

log = logging.getLogger("atoll.server")

LOOK_SECONDS = 5.0
GRPC = "h2"
"""The protocol of gRPC in ALPN."""
_GRPC_NAMES = "api"
"""The beginning of names of the server for which gRPC is offered: browsers take HTTP/2 wherever it is offered."""


class Certificates:
    """A context for TLS, with the certificate chain and the key of two files.

    Args:
        grpc: it is offered, for names that begin with `api`.

    Raises:
        StateUnusable: they cannot be used.
    """

    def __init__(self, certificate: Path, key: Path, *, grpc: bool = False) -> None:
        self._files = certificate, key
        self.context = _context("http/1.1")
        self._for_grpc = _context(GRPC, "http/1.1") if grpc else None
        if grpc:
            self.context.sni_callback = self._named
        self._stamps = self._look()
        try:
            self._load()
        except (OSError, ssl.SSLError, ValueError) as error:
            raise errors.StateUnusable(
                f"cannot use the certificate `{certificate}` with the key `{key}`: {error}",
                hint="give a chain in PEM, the server's own certificate first, and its key without a password",
            ) from error

    def _load(self) -> None:
        certificate, key = self._files
        check = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # a pair that does not fit must not spoil the one in use
        check.load_cert_chain(certificate, key, password=_no_password)
        for context in filter(None, (self.context, self._for_grpc)):
            context.load_cert_chain(certificate, key, password=_no_password)

    def _named(self, connection: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
        """Offer gRPC for its names."""
        if self._for_grpc is not None and (name or "").lower().startswith(_GRPC_NAMES):
            connection.context = self._for_grpc

    def _look(self) -> list[tuple[int, int, int]]:
        found = []
        for path in self._files:
            with contextlib.suppress(OSError):
                stat = os.stat(path)
                found.append((stat.st_mtime_ns, stat.st_ino, stat.st_size))
        return found

    def renew(self) -> None:
        """Read the files again; connections from now on have the new certificate. A faulty pair changes nothing."""
        self._stamps = self._look()
        try:
            self._load()
        except (OSError, ssl.SSLError, ValueError) as error:
            log.warning("certificate_not_renewed", extra={"fields": {"error": str(error)}})
        else:
            log.info("certificate_renewed")

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Renew it when the files change, and at SIGHUP, while the context is open."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self.renew)
        try:
            async with in_background(self._watch):
                yield
        finally:
            loop.remove_signal_handler(signal.SIGHUP)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self._look() != self._stamps:
                self.renew()


def _context(*protocols: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(list(protocols))
    return context


def _no_password() -> str:
    raise ValueError("the key has a password")
