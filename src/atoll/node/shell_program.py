"""The program that becomes an interactive shell in a function's sandbox."""

from __future__ import annotations

SHELL = """
import fcntl, json, os, sys, termios
if sys.argv[1]:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.environ.update(json.loads(sys.argv[2]))
os.umask(0o022)
os.makedirs(os.environ["XDG_RUNTIME_DIR"], 0o700, exist_ok=True)
os.environ.setdefault("TERM", "xterm-256color")
os.environ["PS1"] = r"(atoll) \\w \\$ "
shell = "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"
os.execv(shell, [shell, "--norc", "--noprofile"] if shell.endswith("bash") else [shell])
"""
"""Takes the terminal and becomes a shell; run by the environment's own Python."""
