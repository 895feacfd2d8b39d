"""A small internet without traffic outside, and a command that runs in it: `world.py COMMAND...`, as root.

To be started by `unshare --mount --net`. The command is on a machine with the addresses 10.50.0.1, 172.30.0.1 and
fd50::1, which has a service at port 8080 of each and of its loopback, and a resolver on its loopback. Over a cable it
reaches another machine, which is the rest of the world: 203.0.113.9, 10.50.0.2, fd50::2, and the metadata services
169.254.169.254 and fd00:ec2::254, with a service at port 8080 of each.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

PORT = 8080
INSIDE = ("10.50.0.1/24", "172.30.0.1/32", "fd50::1/64")
OUTSIDE = ("10.50.0.2/24", "203.0.113.9/32", "169.254.169.254/32", "fd50::2/64", "fd00:ec2::254/128")


def ip(*arguments: str, pid: int | None = None) -> None:
    enter = ["nsenter", f"--net=/proc/{pid}/ns/net"] if pid is not None else []
    subprocess.run([*enter, "ip", *arguments], check=True)


def serve() -> None:
    """Accept connections at every address."""
    server = socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True)
    while True:
        server.accept()[0].close()


def resolve() -> None:
    """Answer every question for an address with 203.0.113.9, and others with nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 53))
        while True:
            question, client = server.recvfrom(4096)
            end = question.index(b"\0", 12) + 5
            known = question[end - 4 : end - 2] == b"\0\1"
            head = question[:2] + b"\x81\x80\0\1" + (b"\0\1" if known else b"\0\0") + b"\0\0\0\0"
            answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton("203.0.113.9")
            server.sendto(head + question[12:end] + (answer if known else b""), client)


def main(command: list[str]) -> int:
    with tempfile.TemporaryDirectory() as directory:
        tun, resolver = Path(directory, "tun"), Path(directory, "resolv.conf")
        os.mknod(tun, 0o020666, os.stat("/dev/net/tun").st_rdev)
        tun.chmod(0o666)
        resolver.write_text("nameserver 127.0.0.1\nsearch example.org\n")
        resolver.chmod(0o644)
        for source, target in ((tun, "/dev/net/tun"), (resolver, os.path.realpath("/etc/resolv.conf"))):
            subprocess.run(["mount", "--bind", str(source), target], check=True)
        try:
            return connected(command)
        finally:
            for target in ("/dev/net/tun", os.path.realpath("/etc/resolv.conf")):
                subprocess.run(["umount", target], check=True)


def connected(command: list[str]) -> int:
    """Run the command with a cable to the rest of the world."""
    argv = ["unshare", "--net", "--kill-child", "--fork", sys.executable, __file__]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        pid = int(other.stdout.readline())
        ip("link", "add", "cable0", "type", "veth", "peer", "name", "cable1", "netns", str(pid))
        for name, addresses, where in (("cable0", INSIDE, None), ("cable1", OUTSIDE, pid)):
            for device in ("lo", name):
                ip("link", "set", device, "up", pid=where)
            for address in addresses:
                ip("address", "add", address, "dev", name, *(["nodad"] if ":" in address else []), pid=where)
        ip("route", "add", "default", "via", "10.50.0.2")
        ip("-6", "route", "add", "default", "via", "fd50::2")
        for task in (serve, resolve):
            threading.Thread(target=task, daemon=True).start()
        try:
            return subprocess.run(command, check=False, close_fds=False).returncode
        finally:
            other.kill()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main(sys.argv[1:]))
    print(os.getpid(), flush=True)
    serve()
