"""Objects of which a process has one: each becomes the reader's own."""

from __future__ import annotations

import importlib
import os
from types import SimpleNamespace
from typing import Any

Environ = os._Environ
"""The type of `os.environ` and `os.environb`."""


def reduce_environ(environ: Any, result: bool) -> tuple[Any, ...]:
    """Reduce `os.environ`, `os.environb` or a copy, which shares the variables or sets them too."""
    if result:
        return dict, (dict(environ),)
    return getattr, (os, environ_name(environ))


def environ_name(environ: Any) -> str:
    """Return the name in `os` of an object of type `Environ`."""
    return "environb" if environ.decodevalue is bytes else "environ"


ASSERTIONS = "_pytest.assertion.rewrite"
"""The module of pytest that its rewritten `assert` statements call when they fail."""


def rebuild_assertions() -> Any:
    """Return that module, or without pytest a stand-in that compares in no detail."""
    try:
        return importlib.import_module(ASSERTIONS)
    except ImportError:
        return SimpleNamespace(
            _saferepr=repr,
            _format_assertmsg=str,
            _should_repr_global_name=lambda _: False,
            _format_boolop=lambda parts, is_or: "(" + (" or " if is_or else " and ").join(parts) + ")",
            _call_reprcompare=lambda _ops, results, texts, _objects: next(
                (text for result, text in zip(results, texts, strict=False) if not result), texts[-1]
            ),
            _format_explanation=lambda text: text.partition("\n")[0],
        )
