"""BLAKE2b without OpenSSL, which `hashlib` loads with it: that costs the start of each program and daemon 2 ms."""

from __future__ import annotations

try:
    from _blake2 import blake2b
except ImportError:  # another Python than CPython
    from hashlib import blake2b

__all__ = ["blake2b"]
