"""What a call sends and what its answer brings: the parts of an isolated function that stay from call to call."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from atoll.errors import ProtocolMismatch, set_call_id
from atoll.model.specs import Call, EnvironmentSpec, LeaseSpec

if TYPE_CHECKING:
    from atoll.sdk.options import Options
    from atoll.wire.frames import Message


class Prepared:
    """What stays the same from call to call of one function."""

    def __init__(self, function: Callable[..., Any], options: Options, spec: LeaseSpec, source: Any) -> None:
        from atoll.host.local import local
        from atoll.payload.functions import FunctionPickler
        from atoll.sdk.modules.discover import Sources

        self.host = options.host if options.host is not None else local
        self.name = spec.function
        self.pickler = FunctionPickler(function, options.local_modules, source)
        self.sources = Sources(function, options.local_modules)
        self.setup = Setup(options.setup_function, options.local_modules) if options.setup_function else None
        self._spec = self._last = spec

    def renew(self, environment: EnvironmentSpec) -> None:
        """Have the next call run in this environment."""
        if environment != self._spec.environment:
            self._spec = self._last = replace(self._spec, environment=environment)

    def lease_spec(self, call: Call) -> LeaseSpec:
        if self._last.sources != call.sources or self._last.setup != call.setup_digest:
            self._last = replace(self._spec, sources=call.sources, setup=call.setup_digest)
        return self._last


class Setup:
    """The pickle of a `setup_function`, with its digest."""

    def __init__(self, function: Callable[[], Any], local_modules: Any) -> None:
        from atoll.payload.functions import FunctionPickler

        self._pickler = FunctionPickler(function, local_modules)
        self._made = b"", ""

    def __call__(self) -> tuple[bytes, str]:
        data, _ = self._pickler.dumps()
        if data is not self._made[0]:
            self._made = data, hashlib.blake2b(data, digest_size=16).hexdigest()
        return self._made


def value_of(message: Message, results: str, call_id: str) -> Any:
    """Return what an answer brings, or raise the exception that it describes."""
    from atoll.payload import exceptions_load, functions

    try:
        if results == "data":
            from atoll.payload import untrusted

            if message.type in ("result", "yield"):
                return untrusted.loads(message.buffers)
            error = untrusted.loads_exception(message.header["error"], message.buffers)
        elif message.type in ("result", "yield"):
            return functions.loads_result(message.buffers[0], message.buffers[1:])
        else:
            error = exceptions_load.loads(message.header["error"], message.buffers)
    except (IndexError, KeyError, TypeError, AttributeError, ValueError) as malformed:
        raise ProtocolMismatch(
            f"the worker's answer cannot be read: {malformed!r}",
            hint="code in the worker has disturbed its channel",
        ) from None
    set_call_id(error, call_id)
    try:
        raise error
    finally:
        del error


def name_of(function: Any) -> str:
    """Return what a function is called in messages."""
    name = getattr(function, "__qualname__", None) or getattr(function, "__name__", None)
    return str(name or type(function).__qualname__)


def identity_of(function: Any) -> str:
    """Return which function it is: file and qualified name, the same in every program that has it from there."""
    unwrapped = inspect.unwrap(function)
    code = getattr(unwrapped, "__code__", None)
    if code is None:
        return f"{getattr(unwrapped, '__module__', '')}:{name_of(unwrapped)}"
    line = f":{code.co_firstlineno}" if "<lambda>" in code.co_name else ""
    return f"{os.path.abspath(code.co_filename)}:{name_of(unwrapped)}{line}"
