"""Functions of the published clients, as they run in a sandbox: a pickle comes in, and a pickle goes out.

The pickles are the client's: made and opened with the module that it names (`dill`, `cloudpickle`) in the function's own
environment. What leaves the sandbox is plain data with the pickle in it, so nobody outside opens one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib
import inspect
import os
import sys
import traceback
import types
from collections.abc import Callable, Sequence
from typing import Any

from atoll.web import app_files

METHODS = ("dill", "cloudpickle", "pickle")
"""Modules that make pickles."""
DATA = "/data"
Files = Sequence[tuple[str, str]]
_setups: dict[tuple[str, bytes], Any] = {}
"""Results of setup functions, by the digests of their pickles: each is called once for a worker."""


def call(method: str, function: bytes, setup: bytes, variables: dict[str, str], files: Files = ()) -> dict[str, Any]:
    """Call a function; return its outcome.

    `definition` is the pickle of the result or of the exception, and `refused` the reason where there is none.

    Args:
        method: the module that opens the pickles.
        function: its pickle.
        setup: the pickle of the function that prepares the worker; empty for none.
        variables: of the function's process.
        files: beside the function; see `app_files.place`.
    """
    os.environ.update(variables)
    with contextlib.suppress(OSError):
        os.chdir(DATA)
    _stand_in()
    try:
        if files:
            app_files.place(files)
    except (OSError, ValueError) as error:
        return {"refused": f"the files beside the function cannot be placed: {error}"}
    try:
        module = _module(method)
        found, first = _loaded(module, method, function, setup)
    except Exception as error:
        return {"refused": f"The function function could not be deserialized: {type(error).__name__}: {error}"}
    try:
        result, raised = _value(found(*(make() for make in first))), None
    except KeyboardInterrupt:  # of a call that is cancelled
        raise
    except BaseException as error:
        result, raised = None, error
    if raised is None:
        return _dumped(module, result)
    return _described(module, raised)


def serve(method: str, function: bytes, setup: bytes, variables: dict[str, str], files: Files = ()) -> None:
    """Run a function that serves a port; arguments as `call`.

    Raises:
        BaseException: that of the function, or of its pickle.
    """
    os.environ.update(variables)
    with contextlib.suppress(OSError):
        os.chdir(DATA)
    _stand_in()
    if files:
        app_files.place(files)
    found, first = _loaded(_module(method), method, function, setup)
    _value(found(*(make() for make in first)))


def _module(method: str) -> Any:
    if method not in METHODS:
        raise ValueError(f"pickles by `{method[:50]}` are not read here")
    return importlib.import_module(method)


def _stand_in() -> None:
    """Have a module `isolate`: the clients' `cached` keeps results on it, and asks for no more."""
    if "isolate" not in sys.modules:
        try:
            importlib.import_module("isolate")
        except ImportError:
            sys.modules["isolate"] = types.ModuleType("isolate")


def _loaded(
    module: Any, method: str, function: bytes, setup: bytes
) -> tuple[Callable[..., Any], list[Callable[[], Any]]]:
    """Return the function, and what makes its first argument, where there is one."""
    found = module.loads(function)
    if not setup:
        return found, []
    key = method, hashlib.sha256(setup).digest()
    prepare = None if key in _setups else module.loads(setup)

    def prepared() -> Any:
        if key not in _setups:
            _setups[key] = _value(prepare())  # type: ignore[misc]
        return _setups[key]

    return found, [prepared]


def _value(result: Any) -> Any:
    if not inspect.isawaitable(result):
        return result

    async def wait() -> Any:
        return await result

    return asyncio.run(wait())


def _dumped(module: Any, result: Any) -> dict[str, Any]:
    try:
        return {"definition": module.dumps(result)}
    except Exception as error:
        return {"refused": f"The function's result could not be serialized: {type(error).__name__}: {error}"}


def _described(module: Any, error: BaseException) -> dict[str, Any]:
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    error.__traceback__ = frames
    text = "".join(traceback.format_exception(error, chain=False))  # causes come in the pickle
    with contextlib.suppress(Exception):  # it is not in every environment
        importlib.import_module("tblib.pickling_support").install(error)
    try:
        definition = module.dumps(error)
    except Exception:
        plain = RuntimeError(f"{type(error).__name__}: {error}")
        definition = module.dumps(plain)
    if frames is None:  # the clients read a traceback that has this line
        text = f"Traceback (most recent call last):\n{text}"
    return {"definition": definition, "traceback": text, "type": type(error).__name__, "text": str(error)}
