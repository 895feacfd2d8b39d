"""The namespace keeper: a script that filters an outbound network and keeps its namespaces alive.

Pasta starts it as root of the user namespace that owns the network. Standard input is a socket to Atoll, from which the
script reads netlink messages. Once the kernel has acknowledged them the script answers with descriptors of both
namespaces. So a process with the descriptors has a network that is filtered already. Only a few modules of the standard
library are imported.
"""

from __future__ import annotations

import os
import socket
import struct
import sys

NETLINK_NETFILTER = 12  # <linux/netlink.h>
NLMSG_ERROR = 2
ACKNOWLEDGED = 0x4


def apply(messages: bytes) -> None:
    """Send netlink messages, and wait until the kernel has acknowledged those that ask for it.

    Raises:
        OSError: the kernel refuses one.
    """
    expected = sum(1 for flags in _flags(messages) if flags & ACKNOWLEDGED)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as channel:
        channel.settimeout(5.0)
        channel.bind((0, 0))
        channel.send(messages)
        while expected > 0:
            answer = channel.recv(65536)
            while len(answer) >= 20:
                length, kind = struct.unpack_from("=IH", answer)
                if kind == NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", answer, 16)
                    if code:
                        raise OSError(-code, f"nf_tables: {os.strerror(-code)}")
                    expected -= 1
                answer = answer[(length + 3) & ~3 :]


def _flags(messages: bytes) -> list[int]:
    found = []
    while messages:
        length, _, flags = struct.unpack_from("=IHH", messages)
        found.append(flags)
        messages = messages[(length + 3) & ~3 :]
    return found


def keep(owner: socket.socket) -> None:
    """Filter this network, give the owner its namespaces, and keep them."""
    try:
        apply(owner.recv(1 << 20))
        names = [os.open(f"/proc/self/ns/{name}", os.O_RDONLY) for name in ("user", "net")]
    except OSError as error:
        owner.send(str(error).encode())
        sys.exit(1)
    socket.send_fds(owner, [b"ready"], names)
    os.execv("/bin/sleep", ["sleep", "infinity"])


if __name__ == "__main__":
    keep(socket.socket(fileno=0))
