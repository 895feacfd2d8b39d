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


class Certificates:
    """A context for TLS, with the certificate chain and the key of two files.

    Raises:
        StateUnusable: they cannot be used.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = certificate, key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        self.context.set_alpn_protocols(["http/1.1"])
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
        self.context.load_cert_chain(certificate, key, password=_no_password)

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


def _no_password() -> str:
    raise ValueError("the key has a password")
