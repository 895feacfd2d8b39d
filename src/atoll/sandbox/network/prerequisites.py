"""Means of outbound networks on this machine: pasta, and a network device that this user may open."""

from __future__ import annotations

import os

from atoll.errors import SandboxUnavailable
from atoll.sandbox import programs
from atoll.settings import Settings

DEVICE = "/dev/net/tun"


def check(settings: Settings) -> None:
    """Check that both are there; whether the kernel makes a network, `atoll doctor` tries.

    Raises:
        SandboxUnavailable: one is missing.
    """
    programs.find_pasta(settings.sandbox.pasta)
    check_device()


def check_device() -> os.stat_result:
    """Return the facts of the network device.

    Raises:
        SandboxUnavailable: there is none, or it is closed to this user.
    """
    try:
        found = os.stat(DEVICE)
    except OSError:
        raise SandboxUnavailable(
            f"there is no `{DEVICE}`, which network `outbound` needs",
            hint="run `sudo modprobe tun`; for a container, add `--device /dev/net/tun`",
        ) from None
    if os.geteuid() != 0 and not os.access(DEVICE, os.R_OK | os.W_OK):
        raise SandboxUnavailable(
            f"`{DEVICE}`, which network `outbound` needs, is closed to plain users",
            hint=f"run `sudo chmod 666 {DEVICE}`, as most distributions have it",
        )
    return found
