"""Values of the options of `atoll node` and `atoll nodes`: labels, tokens, and names of machines."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from atoll import errors, settings
from atoll.cli.programs.program import TargetError
from atoll.terminal_text import printable

VARIABLE = "ATOLL_JOIN_TOKEN"
MOST_TOKEN_BYTES = 4096
MOST_CERTIFICATES = 512 << 10


def labels_of(given: Sequence[str] | None) -> dict[str, str]:
    """Return the labels that `--label key=value` gives.

    Raises:
        TargetError: one is none, or a key is given twice.
    """
    found: dict[str, str] = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise TargetError(f"`--label` is `key=value`, such as `zone=lab-2`, is `{printable(text)}`")
        if key in found:
            raise TargetError(f"the label `{printable(key)}` is given twice")
        found[key] = value
    return found


def token_of(given: str, file: Path | None) -> str:
    """Return the token to join: of the option, of a file (`-` for the standard input), or of the variable.

    Raises:
        TargetError: none is given, or two are.
        StateUnusable: the file cannot be read.
    """
    if given and file is not None:
        raise TargetError("`--token` and `--token-file` do not go together")
    if given:
        return given.strip()
    if file is not None:
        return _read(file)
    found = settings.variable(VARIABLE).strip()
    if not found:
        raise TargetError(
            f"no token is given: `--token TOKEN`, `--token-file FILE` or {VARIABLE}",
            hint="`atoll nodes token` on the server makes one",
        )
    return found


def _read(file: Path) -> str:
    try:
        if str(file) == "-":
            return sys.stdin.readline(MOST_TOKEN_BYTES).strip()
        with open(file, encoding="ascii", errors="replace") as opened:
            return opened.read(MOST_TOKEN_BYTES).strip()
    except OSError as error:
        raise errors.StateUnusable(
            f"cannot read the token in `{printable(str(file))}`: {error.strerror}", hint="name another file"
        ) from error


def machine_name() -> str:
    """Return this machine's name as one for a node; empty if it has none that can be made into one."""
    first = platform.node().partition(".")[0].lower()
    return re.sub(r"-+", "-", re.sub(r"[^a-z0-9]+", "-", first)).strip("-")[:63].strip("-")


def certificates_of(file: Path | None, home: Path) -> str:
    """Return the path of the certificates to trust; with `-` they are what is left of the standard input, and are kept.

    Raises:
        StateUnusable, StateUntrusted: they cannot be kept.
    """
    if file is None:
        return ""
    if str(file) != "-":
        return str(file.absolute())
    from atoll.server.member import joined

    return str(joined.write_certificates(home, sys.stdin.read(MOST_CERTIFICATES).encode()))
