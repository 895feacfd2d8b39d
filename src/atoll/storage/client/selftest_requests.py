"""The request for a self-test of a volume's file system."""

from __future__ import annotations

from atoll.model.findings import Finding, check_finding
from atoll.storage.protocol.connection import Requests


class SelfTestRequests(Requests):
    """Ask the storage peer at the other end of a channel what the volume's file system can do."""

    def selftest(self) -> list[Finding]:
        """Try everything, as the volume's owner, in a directory that is removed again; takes about a second.

        Raises:
            DiskFull, QuotaExceeded, StateUnusable: nothing can be tried there.
            HostUnreachable: the peer went away.
        """
        *found, _ = self._messages("selftest", "", {})
        return [check_finding(message.header.get("finding")) for message in found]
