"""The key of an environment, equal for equal environments: pure.

The key is a digest of canonical JSON, so that no two fields can run into each other. Everything that decides the
result is in it, also the way of fetching: proxies, certificates, unchecked hosts, and a keyed digest of credentials
(`index.Index.fetch`). A request without any of these has the same key on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atoll.environments.asked.redaction import strip_credentials, without_query
from atoll.environments.asked.requirements import INDEX_OPTIONS, Requirements
from atoll.environments.built.interpreter import Interpreter
from atoll.model.specs import digest

BUILDER_VERSION = 1
"""Raised when the same request would give another directory than before."""

_WITHOUT_EFFECT = frozenset({"--trusted-host", "--prefer-binary"})
"""uv prefers nothing by the second; the first is in the index's facts."""


def facts(
    kind: str,
    requirements: Requirements,
    interpreter: Interpreter,
    *,
    index: Mapping[str, Any],
    contents: Mapping[str, str],
) -> dict[str, Any]:
    """Return the facts whose digest is the key.

    Args:
        index: facts of the caller's index settings (see `index.Index.facts`).
        contents: for each local path its content's digest; a path of equal content elsewhere is the same.
    """
    return {
        "builder": BUILDER_VERSION,
        "kind": kind,
        **pip_facts(requirements, index=index, contents=contents),
        "python": [
            interpreter.implementation,
            interpreter.version,
            interpreter.abi,
            interpreter.platform,
            interpreter.executable,
        ],
    }


def pip_facts(requirements: Requirements, *, index: Mapping[str, Any], contents: Mapping[str, str]) -> dict[str, Any]:
    """Return the part of `facts` about pip requirements."""
    return {
        "packages": [strip_credentials(package) for package in requirements.packages],
        "paths": sorted(
            [contents[path.location], list(path.extras), path.name, *([path.marker] if path.marker else [])]
            for path in requirements.paths
        ),
        # an environment without packages is the same wherever packages would have come from
        "options": [] if requirements.empty else _options(requirements),
        "index": {} if requirements.empty else dict(index),
    }


def _options(requirements: Requirements) -> list[list[str]]:
    return [
        [name, without_query(value) if name in INDEX_OPTIONS else value]
        for name, value in requirements.options
        if name not in _WITHOUT_EFFECT
    ]


def key(
    kind: str,
    requirements: Requirements,
    interpreter: Interpreter,
    *,
    index: Mapping[str, Any],
    contents: Mapping[str, str],
) -> str:
    """Return the environment's key: 32 hexadecimal digits."""
    return digest(facts(kind, requirements, interpreter, index=index, contents=contents))
