"""`@isolated`: a function that runs in an environment of its own."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from atoll import settings
from atoll.errors import ProtocolMismatch
from atoll.model.specs import Call, EnvironmentSpec, LeaseSpec
from atoll.sdk import stamps
from atoll.sdk.future import CallFuture
from atoll.sdk.options import Options, check_python_version

if TYPE_CHECKING:
    from atoll.host.contract import Host, Ticket

P = ParamSpec("P")
R = TypeVar("R")

SUBMIT_THREADS = max(32, min(128, 4 * (os.cpu_count() or 1)))
"""How many submitted calls a process waits for at a time; more wait their turn."""

MAP_AHEAD = 2 * SUBMIT_THREADS
"""How many items of `map` are taken from its input before the oldest has been answered."""

_token = os.urandom(6).hex()
_counter = itertools.count()


def _new_token() -> None:
    global _token
    _token = os.urandom(6).hex()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_token)


class IsolatedFunction(Generic[P, R]):
    """A function that runs in a sandbox with an environment of its own, and sees the user's `/data`.

    Made by `isolated`. Calling it runs one call and waits for its result; what the function prints appears here as
    it is printed. An exception of the function is raised here, with its remote frames in the traceback.

    Raises:
        EnvironmentBuildError, SerializationError, WorkerDied, RemoteError, PythonVersionMismatch, OperatorError: from
            each of the methods that run a call; see `atoll.errors`.
    """

    def __init__(self, function: Callable[P, R], options: Options) -> None:
        if not callable(function):
            raise TypeError(f"`isolated` needs something that can be called, not {function!r}")
        _refuse_later_kinds(function)
        functools.update_wrapper(self, function)
        self.__wrapped__ = function
        self._options = options
        self._source = stamps.source_of(function)
        self._prepared: _Prepared | None = None

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._run(args, kwargs, None)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __getattr__(self, name: str) -> Any:
        if name == "aio":
            raise AttributeError("`aio` is not in this version of Atoll yet; use `submit` and `asyncio.wrap_future`")
        raise AttributeError(f"an isolated function has no attribute `{name}`")

    def __repr__(self) -> str:
        return f"<isolated {_name(self.__wrapped__)}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return IsolatedFunction, (self.__wrapped__, self._options)

    @property
    def __atoll_function__(self) -> Callable[P, R]:
        """The plain function, for pickles that name it by its module."""
        return self.__wrapped__

    @property
    def options(self) -> Options:
        """What the function asks for."""
        return self._options

    def local(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the plain function in this process."""
        return self.__wrapped__(*args, **kwargs)

    def on(self, host: Host | None = None, **options: Any) -> IsolatedFunction[P, R]:
        """Return a function with these options changed and all others kept.

        Raises:
            TypeError, ValueError: an option is unknown or wrong.
        """
        changes = options if host is None else {**options, "host": host}
        return IsolatedFunction(self.__wrapped__, self._options.with_changes(changes))

    def submit(self, /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Begin a call and return its future; `cancel()` works before it starts, `self.cancel(future)` always."""
        future: CallFuture[R] = CallFuture()
        _executor().submit(self._complete, future, args, kwargs)
        return future

    def _complete(self, future: CallFuture[R], args: Any, kwargs: Any) -> None:
        try:
            if not future.cancelled():
                future.set_result(self._run(args, kwargs, future.ticket))
        except BaseException as error:
            with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
                future.set_exception(error)
        finally:
            future.tell_cancelled()

    def cancel(self, future: Future[Any]) -> bool:
        """Cancel a call that `submit` began; one that runs is killed, and its future gets `CallCancelled`.

        Returns False when it had been answered already.
        """
        if future.cancel():
            return True
        if future.done() or not isinstance(future, CallFuture):
            return False
        future.ticket.cancel()
        return True

    def map(self, iterable: Iterable[Any], *more: Iterable[Any]) -> Iterator[R]:
        """Call the function for each item and yield the results in order, with bounded work in flight."""
        return self.starmap(zip(iterable, *more, strict=False))

    def starmap(self, iterable: Iterable[Iterable[Any]]) -> Iterator[R]:
        """Like `map`, for items that are tuples of arguments."""
        pending: deque[Future[R]] = deque()
        try:
            for arguments in iterable:
                pending.append(self.submit(*arguments))  # type: ignore[call-arg]  # the items decide
                while pending and (pending[0].done() or len(pending) >= MAP_AHEAD):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                self.cancel(future)

    def environment_spec(self) -> EnvironmentSpec:
        """Return the environment that the function asks for."""
        interpreter = getattr(sys, "_base_executable", None) or sys.executable
        return EnvironmentSpec(
            self._options.kind,
            self._options.requirements,
            self._options.python_version or "",
            os.path.abspath(interpreter) if interpreter else "",
            tuple(sorted(settings.index_variables().items())),
        )

    def lease_spec(self) -> LeaseSpec:
        """Return what a call of the function asks its host for, without the project's modules."""
        check_python_version(self._options.python_version)
        return LeaseSpec(
            self.environment_spec(),
            _name(self.__wrapped__),
            self._options.env,
            "",
            self._options.network or "",
            self._options.mounts,
            self._options.keep_alive,
        )

    # --- a call -----------------------------------------------------------------------------------------------------

    def _run(self, args: Any, kwargs: Any, ticket: Ticket | None) -> R:
        from atoll.sdk import exceptions, payload
        from atoll.sdk.output import CallerStreams

        prepared = self._prepared
        if prepared is None:
            prepared = self._prepared = _Prepared(self.__wrapped__, self._options, self.lease_spec(), self._source)
        bundle = prepared.sources.current()
        function, reusable = prepared.pickler.dumps()
        arguments, buffers = prepared.pickler.dumps_arguments(args, kwargs)
        sources = bundle.digest if bundle is not None else ""
        call = Call(
            f"{_token}-{next(_counter)}",
            function,
            arguments,
            tuple(buffers),
            reusable=reusable,
            sources=sources,
            name=prepared.name,
            at=time.time(),
        )
        message = prepared.host.run(prepared.lease_spec(sources), call, bundle, CallerStreams(), ticket)
        try:
            if message.type == "result":
                value: R = payload.loads_result(message.buffers[0], message.buffers[1:])
                return value
            error = exceptions.loads(message.header["error"], message.buffers)
        except (IndexError, KeyError, TypeError, AttributeError, ValueError) as malformed:
            raise ProtocolMismatch(
                f"the worker's answer cannot be read: {malformed!r}",
                hint="code in the worker has disturbed its channel",
            ) from None
        try:
            raise error
        finally:
            del error


class _Prepared:
    """What stays the same from call to call of one function."""

    def __init__(self, function: Callable[..., Any], options: Options, spec: LeaseSpec, source: Any) -> None:
        from atoll.host.local import local
        from atoll.sdk.payload import FunctionPickler
        from atoll.sdk.sources import Sources

        self.host = options.host if options.host is not None else local
        self.name = spec.function
        self.pickler = FunctionPickler(function, options.local_modules, source)
        self.sources = Sources(function, options.local_modules)
        self._spec = self._last = spec

    def lease_spec(self, sources: str) -> LeaseSpec:
        if self._last.sources != sources:
            self._last = replace(self._spec, sources=sources)
        return self._last


def _refuse_later_kinds(function: Any) -> None:
    """Refuse the kinds of functions that this version cannot run yet."""
    plain = inspect.unwrap(function)
    for test, kind in (
        (inspect.isasyncgenfunction, "an asynchronous generator"),
        (inspect.isgeneratorfunction, "a generator"),
        (inspect.iscoroutinefunction, "an async function"),
    ):
        if test(plain):
            raise TypeError(
                f"`{_name(function)}` is {kind}, which this version of Atoll does not run yet; return a list, or call "
                "`asyncio.run` inside the function"
            )


def _name(function: Any) -> str:
    name = getattr(function, "__qualname__", None) or getattr(function, "__name__", None)
    return str(name or type(function).__qualname__)


_executors: dict[int, ThreadPoolExecutor] = {}
_executors_lock = threading.Lock()


def _executor() -> ThreadPoolExecutor:
    """Return this process's threads that wait for submitted calls."""
    with _executors_lock:
        pid = os.getpid()
        if pid not in _executors:
            _executors.clear()
            _executors[pid] = ThreadPoolExecutor(SUBMIT_THREADS, thread_name_prefix="atoll")
        return _executors[pid]


@overload
def isolated(kind: Callable[P, R], /) -> IsolatedFunction[P, R]: ...
@overload
def isolated(kind: str = "virtualenv", **options: Any) -> Callable[[Callable[P, R]], IsolatedFunction[P, R]]: ...


def isolated(kind: Any = "virtualenv", **options: Any) -> Any:
    """Mark a function to run in an environment of its own: `@isolated`, `@isolated()`, `@isolated(kind, ...)`.

    Args:
        kind: `virtualenv`.
        options: see `options.Options`.

    Raises:
        TypeError: an option is unknown or of the wrong type; names the nearest valid one.
        ValueError: an option's value is out of range.
    """
    if callable(kind) and not isinstance(kind, str):
        return IsolatedFunction(kind, Options().with_changes(options))
    checked = Options().with_changes({"kind": kind, **options})
    return lambda function: IsolatedFunction(function, checked)
