"""Functions that are found by name, for a caller whose Python is another one.

Pickles of functions hold bytecode, which each minor version of Python has its own of. Such a function is imported from
its file instead, and what it returns is printed where it ran: a class of the worker's Python would be none of the
caller's.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

from atoll.payload.values import import_function


def printing(module: str, name: str) -> Callable[..., None]:
    """Return a function that calls the one of this name and prints its result unless that is None.

    The items of a generator are printed one by one; an async function is run to its end. An isolated function's
    `setup_function` is called before.
    """
    found = getattr(importlib.import_module(module), name)
    options = getattr(found, "options", None)
    setup = getattr(options, "setup_function", None)
    function = import_function(module, name)

    def call(*args: Any, **kwargs: Any) -> None:
        value = function(*((setup(), *args) if setup is not None else args), **kwargs)
        if inspect.iscoroutine(value):
            import asyncio

            value = asyncio.run(value)
        if inspect.isasyncgen(value):
            import asyncio

            asyncio.run(_print_items(value))
        elif inspect.isgenerator(value):
            for item in value:
                print(item, flush=True)
        elif value is not None:
            print(value)
        sys.stdout.flush()

    return call


async def _print_items(items: AsyncIterator[Any]) -> None:
    async for item in items:
        print(item, flush=True)
