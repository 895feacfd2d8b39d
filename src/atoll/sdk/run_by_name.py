"""A function of a file under another Python, for `atoll run`: the file travels as source, arguments as plain data.

The worker prints the result. Pickles of the other Python are never loaded here, since bytecode in them would be read
wrongly.
"""

from __future__ import annotations

import os
import pickle
import sys
from dataclasses import replace
from typing import Any

from atoll.errors import AtollError, PythonVersionMismatch, RemoteError, SerializationError
from atoll.model.specs import Call
from atoll.payload.values import printing
from atoll.sdk.function import IsolatedFunction
from atoll.sdk.options import Options

OLDEST = (3, 10)
"""The oldest Python for Atoll's own part inside a sandbox."""


def needed(options: Options) -> bool:
    """Return whether a function asks for another minor version of Python than this one."""
    wanted = _version(options)
    return wanted != tuple(sys.version_info[: len(wanted)])


def _version(options: Options) -> tuple[int, ...]:
    return tuple(int(part) for part in (options.python_version or "").split(".") if part)[:2]


class _ByName:
    def __init__(self, module: str, name: str) -> None:
        self._names = module, name

    def __reduce__(self) -> tuple[Any, ...]:
        return printing, self._names


def run(
    function: IsolatedFunction[..., Any],
    module: str,
    file: str,
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """Run one call; the worker prints the result.

    Args:
        module, file: the module in which the function is called `name`, and its file.

    Raises:
        PythonVersionMismatch: no function runs on that version.
        RemoteError: the function raised; it has the traceback as text.
        SerializationError: an argument is no plain data.
        AtollError: as a call does.
    """
    from atoll.host.default import default_host
    from atoll.sdk.display.output import CallerStreams
    from atoll.sdk.modules.discover import Sources

    options = function.options
    wanted = _version(options)
    if len(wanted) > 1 and wanted < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise PythonVersionMismatch(
            f"the function asks for Python {options.python_version}, and functions run on {oldest} and newer",
            hint=f'give `python_version="{oldest}"` or a newer one',
            wanted=options.python_version,
            found=oldest,
        )
    try:
        arguments = pickle.dumps((args, kwargs), 4)
    except Exception as error:
        raise SerializationError(
            f"the arguments cannot be sent to another Python: {error}", hint="pass numbers, texts, lists and dicts"
        ) from error
    bundle = Sources(function.__wrapped__, options.local_modules, options.named_packages).with_file(module, file)
    spec = replace(function.lease_spec(pickled=False), sources=bundle.digest)
    call = Call(
        f"run-{os.urandom(8).hex()}",
        pickle.dumps(_ByName(module, name), 4),
        arguments,
        sources=bundle.digest,
        name=spec.function,
        timeout_seconds=options.timeout or 0.0,
    )
    host = options.host if options.host is not None else default_host()
    streams, failed = CallerStreams(call.id, call.name), True
    try:
        message = host.run(spec, call, bundle, streams)
        failed = message.type == "error"
    finally:
        streams.ended(failed=failed)
    if message.type == "error":
        raise _described(message.header.get("error"))


def _described(header: Any) -> AtollError:
    """Return the raised exception, from its description alone."""
    from atoll.payload import exceptions_load

    try:
        nodes = [{**node, "pickle": -1, "refused": "it is of another Python"} for node in header["exceptions"]]
        found = exceptions_load.loads({**header, "exceptions": nodes}, [])
        remote = found if isinstance(found, RemoteError) else found.__cause__
        if isinstance(remote, RemoteError):
            return remote
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, AssertionError):
        pass
    return RemoteError("the function raised an exception that cannot be read", hint="see its output")
