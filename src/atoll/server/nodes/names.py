"""Names and labels of nodes: short ASCII texts, as in DNS, so that they can be read, typed and put into paths."""

from __future__ import annotations

import re
from collections.abc import Mapping

from atoll import errors
from atoll.server.cluster.contract import LOCAL
from atoll.terminal_text import cell

MOST_NAME = 63
MOST_LABELS = 16
RESERVED = frozenset({LOCAL, "join", "self", "tokens"})
"""The server's own machine, and words of the routes."""
_NAME = re.compile(r"[a-z0-9](?:-?[a-z0-9])*")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9._/-]{0,61}[a-z0-9])?")
_VALUE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:/-]{0,62})?|")


def check_name(name: str) -> str:
    """Return the name of a node that joins.

    Raises:
        CallerError: it is none, or is reserved.
    """
    if len(name) > MOST_NAME or not _NAME.fullmatch(name):
        raise errors.CallerError(
            f"`{cell(name, 80)}` is no name for a node",
            hint=f"use 1 to {MOST_NAME} lower-case ASCII letters, digits, and single `-` between them",
        )
    if name in RESERVED:
        raise errors.CallerError(f"the name `{name}` is reserved", hint="choose another one: `--name NAME`")
    return name


def check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels of a node.

    Raises:
        CallerError: there are too many, or one is none.
    """
    if len(labels) > MOST_LABELS:
        raise errors.CallerError(f"a node has at most {MOST_LABELS} labels", hint="leave some out")
    for key, value in labels.items():
        if not _LABEL.fullmatch(key) or not _VALUE.fullmatch(value):
            raise errors.CallerError(
                f"`{cell(f'{key}={value}', 140)}` is no label of a node",
                hint="give `key=value` of at most 63 ASCII characters each, such as `zone=lab-2`",
            )
    return dict(sorted(labels.items()))
