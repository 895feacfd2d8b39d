"""Calls of isolated functions: from arguments to a request for a host, and from an answer to a value."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from atoll.errors import ProtocolMismatch, set_call_id
from atoll.model.specs import Call, EnvironmentSpec, LeaseSpec
from atoll.sdk.futures import new_id
from atoll.sdk.options import Options, is_generator

if TYPE_CHECKING:
    from types import CodeType

    from atoll.host.contract import Bundle, Host
    from atoll.payload.functions import PickledFunction
    from atoll.payload.texts.dump import Texts
    from atoll.wire.frames import Message


class Request(NamedTuple):
    """One call of a function: the call, its spec for the host, and the modules that travel with it."""

    call: Call
    spec: LeaseSpec
    bundle: Bundle | None


_VARIABLES = re.compile(rb"\b(environb?|putenv|unsetenv)\b")
"""Names in a function's bytes whose code may set environment variables."""
_CALLS = re.compile(rb"\b(atoll(?!\.payload\b)|fal_serverless|isolated)\b")
"""Names in a function's bytes whose code may call other functions."""


class _Template(NamedTuple):
    """The last request, and the parts that it was made of."""

    request: Request
    function: PickledFunction
    bundle: Bundle | None
    setup: PickledFunction | None
    texts: Texts


class Prepared:
    """The parts of a function's calls that stay from call to call; made anew where their source has changed."""

    def __init__(self, function: Callable[..., Any], options: Options, spec: LeaseSpec, source: Any) -> None:
        from atoll.host.default import default_host
        from atoll.payload.functions import FunctionPickler, loads_by_value
        from atoll.sdk.display.output import arrangement, terminal
        from atoll.sdk.modules.discover import Sources

        self.host: Host = options.host if options.host is not None else default_host()
        own_lines = options.results == "data"  # its function need not be trusted with the rest of a file
        self._pickler = FunctionPickler(function, options.local_modules, source, own_lines)
        self._sources = Sources(function, options.local_modules, options.named_packages)
        setup = options.setup_function
        self._setup = FunctionPickler(setup, options.local_modules, None, own_lines) if setup is not None else None
        self._timeout_seconds = options.timeout or 0.0
        self._stream = is_generator(function)
        self._results = options.results
        self._arrangement = arrangement
        self._terminal = terminal if options.terminal is not False else None
        self._spec = spec
        self._template: _Template | None = None
        self._loads = loads_by_value

    def renew(self, environment: EnvironmentSpec) -> None:
        """Have the next call run in this environment."""
        if environment != self._spec.environment:
            self._spec = replace(self._spec, environment=environment)
            self._template = None

    def request(self, args: Any, kwargs: Any, call_id: str = "", made_at: float = 0.0, direct: bool = False) -> Request:
        """Return a call with the function, its modules and its arguments as they are now.

        Args:
            call_id: empty for a new one.
            made_at: seconds since the epoch; 0 for now.
            direct: the program waits for this call alone, which may have its terminal.

        Raises:
            SerializationError: a part cannot be pickled, or the modules cannot travel.
        """
        function = self._pickler.current()
        bundle = self._sources.current(function.captures)
        codes: list[CodeType] = []
        arguments, buffers = self._pickler.dumps_arguments(args, kwargs, codes)
        setup = self._setup.current() if self._setup is not None else None
        template = self._template
        streams = self._arrangement()
        if template is not None and template[0].call.streams != streams:
            template = None
        if template is None or template[1] is not function or template[2] is not bundle or template[3] is not setup:
            template = self._template = self._new_template(function, bundle, setup, streams)
        like = template[0]
        terminal = self._terminal() if direct and streams == "one" and self._terminal is not None else None
        call = like.call.again(call_id or new_id(), arguments, tuple(buffers), made_at or time.time(), terminal)
        if codes and not {code.co_filename for code in codes} <= template.texts.names:
            from atoll.payload.texts import dump

            texts = dump.joined(template.texts, dump.pack(codes, self._pickler.own_lines))
            call = replace(call, texts=texts.data, texts_digest=texts.digest)
        return Request(call, like.spec, bundle)

    def value_of(self, message: Message, call_id: str) -> Any:
        """Return the value of an answer, or raise its exception."""
        if self._results == "pickle" and message.type != "error":
            with contextlib.suppress(Exception):  # read again below, for its error
                return self._loads(message.buffers[0], message.buffers[1:])
        return value_of(message, self._results, call_id)

    def another(self, like: Request, args: Any) -> Request:
        """Return a request like this one with other arguments; nothing else is looked at."""
        arguments, buffers = self._pickler.dumps_arguments(args, {})
        return like._replace(call=like.call.again(new_id(), arguments, tuple(buffers), time.time()))

    def _new_template(
        self, function: PickledFunction, bundle: Bundle | None, setup: PickledFunction | None, streams: str
    ) -> _Template:
        sources = bundle.digest if bundle is not None else ""
        setup_digest = setup.full_digest() if setup is not None else ""
        texts = function.texts
        if setup is not None:
            from atoll.payload.texts import dump

            texts = dump.joined(texts, setup.texts)
        call = Call(
            "",
            function.data,
            b"",
            reusable=function.reusable,
            sources=sources,
            name=self._spec.function,
            timeout_seconds=self._timeout_seconds,
            stream=self._stream,
            setup=setup.data if setup is not None else b"",
            setup_digest=setup_digest,
            results=self._results,
            streams=streams,
            function_digest=function.digest,
            texts=texts.data,
            texts_digest=texts.digest,
            names=self._pickler.names() if self._results == "pickle" else None,
        )
        spec = replace(self._spec, sources=sources, setup=setup_digest)
        if spec.preload is None and _names(_VARIABLES, function, setup):
            spec = replace(spec, preload=())  # an import after the function has set a variable may differ
        if not spec.environment.names_packages and (bundle is not None or _names(_CALLS, function, setup)):
            from atoll.host import index_settings  # other functions need none of the caller's files

            index = index_settings.collect((), for_calls=True)
            spec = replace(spec, environment=replace(spec.environment, index=index))
        last = self._template
        if last is not None and last.request.spec == spec:
            spec = last.request.spec  # the host finds a lease faster for the same object
        return _Template(Request(call, spec, bundle), function, bundle, setup, texts)


class MethodCalls:
    """The parts of a method's calls, as `Prepared`: each call has the object as its first argument."""

    def __init__(self, prepared: Prepared | MethodCalls, instance: Any) -> None:
        self._prepared = prepared
        self._instance = instance
        self.host: Host = prepared.host

    def request(self, args: Any, kwargs: Any, call_id: str = "", made_at: float = 0.0, direct: bool = False) -> Request:
        """Return a call of the object's method; see `Prepared.request`."""
        return self._prepared.request((self._instance, *args), kwargs, call_id, made_at, direct)

    def another(self, like: Request, args: Any) -> Request:
        """Return a request like this one with other arguments; see `Prepared.another`."""
        return self._prepared.another(like, (self._instance, *args))

    def renew(self, environment: EnvironmentSpec) -> None:
        """Have the next call run in this environment."""
        self._prepared.renew(environment)

    def value_of(self, message: Message, call_id: str) -> Any:
        """Return the value of an answer, or raise its exception."""
        return self._prepared.value_of(message, call_id)


def value_of(message: Message, results: str, call_id: str) -> Any:
    """Return the value of an answer, or raise the exception that it describes."""
    from atoll.payload import exceptions_load, functions

    try:
        if results == "data":
            from atoll.payload import untrusted

            if message.type in ("result", "yield"):
                return untrusted.loads(message.buffers)
            error = untrusted.loads_exception(message.header["error"], message.buffers, all_frames=_debugs())
        elif message.type in ("result", "yield"):
            return functions.loads_result(message.buffers[0], message.buffers[1:])
        else:
            error = exceptions_load.loads(message.header["error"], message.buffers, all_frames=_debugs())
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


def _debugs() -> bool:
    from atoll import settings  # for errors alone

    return settings.debugs()


def name_of(function: Any) -> str:
    """Return a function's name for messages."""
    name = getattr(function, "__qualname__", None) or getattr(function, "__name__", None)
    return str(name or type(function).__qualname__)


def identity_of(function: Any) -> str:
    """Return which function it is: the caller's file and qualified name, also inside of a sandbox.

    It is the same in every program that has the function from there, whatever options it has.
    """
    from atoll.payload import install  # keeps `from atoll import isolated` cheap

    unwrapped = inspect.unwrap(function)
    while isinstance(unwrapped, functools.partial):
        unwrapped = inspect.unwrap(unwrapped.func)
    name = name_of(unwrapped)
    code = getattr(unwrapped, "__code__", None) or getattr(type(unwrapped).__call__, "__code__", None)
    if code is None:
        return f"{getattr(unwrapped, '__module__', '')}:{name}"
    line = f":{code.co_firstlineno}" if "<lambda>" in code.co_name else ""
    file = code.co_filename
    # A name as `<stdin>` is no path; the file of a module that travels is elsewhere inside.
    return f"{file if file.startswith('<') else os.path.abspath(install.original(file))}:{name}{line}"


def _names(names: re.Pattern[bytes], function: PickledFunction, setup: PickledFunction | None) -> bool:
    """Return whether the function, or a helper that travels with it, has one of the names."""
    return any(names.search(one.data) for one in (function, setup) if one is not None)
