"""A process that has an outbound network namespace made and keeps it; a script of its own (see `network`).

It runs as root of the user namespace that owns the network, and nowhere else: started by pasta, or starting
slirp4netns beside itself. On its standard input it has a socket to Atoll, from which it takes netlink messages; once
the kernel has acknowledged these it answers with descriptors of both namespaces. So whoever has the descriptors has
a network that is filtered already. It needs nothing but the standard library, and little of that.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys

NETLINK_NETFILTER = 12  # <linux/netlink.h>
NLMSG_ERROR = 2
ACKNOWLEDGED = 0x4
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # <linux/sched.h>


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


def hold(owner: socket.socket) -> None:
    """Filter this network, give the owner its namespaces, and stay."""
    try:
        apply(owner.recv(1 << 20))
        names = [os.open(f"/proc/self/ns/{name}", os.O_RDONLY) for name in ("user", "net")]
    except OSError as error:
        owner.send(str(error).encode())
        sys.exit(1)
    socket.send_fds(owner, [b"ready"], names)
    os.execv("/bin/sleep", ["sleep", "infinity"])


def unshare() -> None:
    """Make a user namespace with a network namespace, in which this process is root."""
    import ctypes

    uid, gid = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "a user namespace cannot be made")
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def serve(command: list[str], owner: socket.socket) -> None:
    """Make the namespaces in a child, and become the program that serves them: slirp4netns."""
    made, tell_made = os.pipe()
    ready, tell_ready = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(tell_ready)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        try:
            unshare()
        except OSError as error:
            owner.send(str(error).encode())
            sys.exit(1)
        os.write(tell_made, b"1")
        if os.read(ready, 1):
            hold(owner)
        sys.exit(1)
    os.close(tell_made)
    os.close(ready)
    if not os.read(made, 1):
        sys.exit(1)
    owner.close()
    os.set_inheritable(tell_ready, True)
    os.execv(command[0], [*command, "--ready-fd", str(tell_ready), str(child), "tap0"])


if __name__ == "__main__":
    channel = socket.socket(fileno=0)
    if len(sys.argv) > 1:
        serve(sys.argv[1:], channel)
    else:
        hold(channel)
