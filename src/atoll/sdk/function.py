"""`@isolated`: a function that runs in an environment of its own."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, ParamSpec, TypeVar, overload

from atoll import file_stamp
from atoll.errors import AtollError, set_call_id
from atoll.model.specs import EnvironmentSpec, LeaseSpec
from atoll.sdk import conda_options
from atoll.sdk.call import Prepared, Request, identity_of, name_of
from atoll.sdk.futures import CallFuture, Job, hide_frames, new_ticket, threads
from atoll.sdk.options import Options, check_python_version, is_generator

if TYPE_CHECKING:
    from atoll.host.contract import Host, Ticket

P = ParamSpec("P")
R = TypeVar("R")


class IsolatedFunction(Generic[P, R]):
    """A function that runs in a sandbox with an environment of its own, and sees the user's `/data`.

    Made by `isolated`. Calling it runs one call and waits for its result; what the function prints appears here as
    it is printed. An exception of the function is raised here, with its remote frames in the traceback.

    Raises:
        EnvironmentBuildError, SerializationError, WorkerDied, RemoteError, PythonVersionMismatch, OperatorError: from
            each of the methods that run a call; see `atoll.errors`.
    """

    # `functools.wraps` copies a function's `__dict__`: it has only what belongs to the plain function too.
    __slots__ = ("__dict__", "__weakref__", "_contents", "_is_generator", "_options", "_prepared", "_source")

    __name__: str
    refusal: ClassVar[Callable[[IsolatedFunction[..., Any]], BaseException] | None] = None
    """While a program is imported only for its functions: the error of the calls that it makes meanwhile."""

    def __init__(self, function: Callable[P, R], options: Options) -> None:
        if not callable(function):
            raise TypeError(f"`isolated` needs something that can be called, not {function!r}")
        functools.update_wrapper(self, function)
        self.__wrapped__ = function
        self._options = options.located(function)
        self._source = file_stamp.source_of(function)
        self._prepared: Prepared | None = None
        self._contents: conda_options.Contents | None = None
        self._is_generator: bool | None = None

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            if self.is_generator:
                return self._iterate(args, kwargs)  # type: ignore[return-value]  # `R` is an iterator then
            return self._run(args, kwargs, None)
        except BaseException as error:
            hide_frames(error)
            raise

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __repr__(self) -> str:
        return f"<isolated {name_of(self.__wrapped__)}>"

    def __reduce__(self) -> str | tuple[Any, ...]:
        from atoll.payload.reducers import named  # keeps `from atoll import isolated` cheap

        return named.reduce_by_name(self, "isolated function", self.__atoll_reduce__)

    def __atoll_reduce__(self) -> tuple[Any, ...]:
        """Reduce it by value, for calls and for cloudpickle."""
        return IsolatedFunction, (self.__wrapped__, self._options.closed())

    def __copy__(self) -> IsolatedFunction[P, R]:
        return self

    def __deepcopy__(self, memo: Any) -> IsolatedFunction[P, R]:
        return self  # as plain functions are

    @property
    def __atoll_function__(self) -> Callable[P, R]:
        """The plain function, for pickles that name it by its module."""
        return self.__wrapped__

    @property
    def options(self) -> Options:
        """The function's options."""
        return self._options

    def local(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the plain function in this process."""
        try:
            return self.__wrapped__(*args, **kwargs)
        except BaseException as error:
            hide_frames(error)
            raise

    def on(self, host: Host | None = None, **options: Any) -> IsolatedFunction[P, R]:
        """Return a function with these options changed and all others kept.

        Raises:
            TypeError, ValueError: an option is unknown or wrong.
        """
        try:
            options = options if host is None else {**options, "host": host}
            return IsolatedFunction(self.__wrapped__, self._options.with_changes(options))
        except (TypeError, ValueError) as error:
            hide_frames(error, is_report=True)
            raise

    def submit(self, /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Begin a call and return its future; `cancel()` works before it starts, `self.cancel(future)` always.

        The future of a generator function gets the list of its items.
        """
        if IsolatedFunction.refusal is not None:
            raise IsolatedFunction.refusal(self)
        future: CallFuture[R] = CallFuture()
        run = functools.partial(self._complete, future, args, kwargs)
        threads().submit(Job(run, functools.partial(self.cancel, future), future.ticket.kill, self._options.grace))
        return future

    def _complete(self, future: CallFuture[R], args: Any, kwargs: Any) -> None:
        try:
            if not future.cancelled():
                run: Any = self._iterate if self.is_generator else self._run
                found: Any = run(args, kwargs, future.ticket)
                future.set_result(list(found) if self.is_generator else found)  # type: ignore[arg-type]  # `R` is a list then
        except BaseException as error:
            hide_frames(error)
            with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
                future.set_exception(error)
        finally:
            future.tell_cancelled()

    def cancel(self, future: Future[Any]) -> bool:
        """Cancel a call that `submit` began; one that runs is asked to end, and its future gets `CallCancelled`.

        A call that has not ended after its `grace` is killed. Returns False when it had been answered already.
        """
        if future.cancel():
            return True
        if future.done() or not isinstance(future, CallFuture):
            return False
        future.ticket.cancel()
        return True

    def aio(self, /, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Run a call from asyncio: `await f.aio(...)`, or `async for item in f.aio(...)` for a generator function.

        A task that is cancelled while it waits has its call cancelled, running or not.
        """
        from atoll.sdk import aio

        if self.is_generator:
            return aio.items(self, args, kwargs)
        return aio.result(self, args, kwargs)

    def map(self, iterable: Iterable[Any], *more: Iterable[Any], return_exceptions: bool = False) -> Iterator[R]:
        """Call the function for each item and yield the results in order, with bounded work in flight.

        Args:
            iterable, more: as the built-in `map` takes them, read as results are taken and a bounded number of items
                ahead of them. What is not a list, tuple, range, string or bytes is read by a thread of its own, so
                that results come also while it blocks.
            return_exceptions: yield the exception of a call that failed in its place, and go on.

        Raises:
            Exception: of the first call that failed, in its place, or of the input after the results before it; the
                calls behind it are cancelled.
        """
        from atoll.sdk.mapping import is_direct, results

        items = zip(iterable, *more, strict=False)
        return results(self, items, direct=is_direct(iterable, *more), return_exceptions=return_exceptions)

    def starmap(self, iterable: Iterable[Iterable[Any]], *, return_exceptions: bool = False) -> Iterator[R]:
        """Like `map`, for items that are tuples of arguments."""
        from atoll.sdk.mapping import is_direct, results

        return results(self, iter(iterable), direct=is_direct(iterable), return_exceptions=return_exceptions)

    def environment_spec(self) -> EnvironmentSpec:
        """Return the environment that the function asks for, with `env_yml` as the file is now.

        Raises:
            EnvironmentBuildError: that file cannot be read or understood.
        """
        return self._environment_of(conda_options.contents(vars(self._options)))

    def _environment_of(self, found: conda_options.Contents) -> EnvironmentSpec:
        from atoll.host import index_settings  # keeps `from atoll import isolated` cheap

        interpreter = getattr(sys, "_base_executable", None) or sys.executable
        return EnvironmentSpec(
            kind=self._options.kind,
            requirements=found.requirements,
            python_version=self._options.python_version or "",
            interpreter=os.path.abspath(interpreter) if interpreter else "",
            index=index_settings.collect((*found.requirements, *found.packages, *found.channels, *found.pip)),
            packages=found.packages,
            channels=found.channels,
            pip=found.pip,
        )

    def lease_spec(self, *, pickled: bool = True) -> LeaseSpec:
        """Return the spec of the lease for a call, without the project's modules.

        Raises:
            PythonVersionMismatch: it asks for another minor version, and is to travel as a pickle.
            EnvironmentBuildError: see `environment_spec`.
        """
        if pickled:
            check_python_version(self._options.python_version)
        return LeaseSpec(
            self.environment_spec(),
            name_of(self.__wrapped__),
            self._options.env,
            "",
            self._options.network or "",
            self._options.mounts,
            self._options.keep_alive,
            machine_type=self._options.machine_type or "",
            max_concurrency=self._options.max_concurrency or 0,
            identity=identity_of(self.__wrapped__) if self._options.max_concurrency else "",
            preload=self._options.preload,
            umask=self._options.umask,
            trusted=self._options.results != "data",
            grace_seconds=self._options.grace,
        )

    # --- a call -----------------------------------------------------------------------------------------------------

    @property
    def is_generator(self) -> bool:
        """True if a call gives items one by one."""
        if self._is_generator is None:
            self._is_generator = is_generator(self.__wrapped__)
        return self._is_generator

    def _run(self, args: Any, kwargs: Any, ticket: Ticket | None) -> R:
        if not self._options.retries.count:
            return self._run_once(args, kwargs, ticket)
        ticket = ticket or new_ticket()
        for retry in itertools.count():
            try:
                return self._run_once(args, kwargs, ticket)
            except BaseException as error:
                if not self._is_retried(error, retry, ticket):
                    raise
            self._pause(retry, ticket)
        raise AssertionError("unreachable")

    def _is_retried(self, error: BaseException, retry: int, ticket: Ticket | None) -> bool:
        retries = self._options.retries
        return retry < retries.count and not (ticket is not None and ticket.cancelled) and retries.covers(error)

    def _pause(self, retry: int, ticket: Ticket | None) -> None:
        """Wait before a retry, unless the call is cancelled meanwhile."""
        over = threading.Event()
        if ticket is not None:
            ticket.arm(over.set)
        over.wait(self._options.retries.wait(retry))
        if ticket is not None:
            ticket.arm(None)

    def _run_once(self, args: Any, kwargs: Any, ticket: Ticket | None) -> R:
        from atoll.sdk.display.output import CallerStreams  # keeps `from atoll import isolated` cheap

        prepared = self._prepare()
        request = _request(prepared, args, kwargs, ticket)
        call = request.call
        streams = CallerStreams()
        try:
            message = prepared.host.run(request.spec, call, request.bundle, streams, ticket)
        except AtollError as error:
            set_call_id(error, call.id)
            raise
        finally:
            streams.proceeds()
        value: R = prepared.value_of(message, call.id)
        return value

    def _iterate(self, args: Any, kwargs: Any, ticket: Ticket | None = None) -> Generator[Any, None, Any]:
        """Run a generator's call from the first `next` on; made again only while it has given nothing."""
        ticket = ticket or new_ticket()
        for retry in itertools.count():
            fresh = True
            try:
                for item in self._iterate_once(args, kwargs, ticket):
                    if isinstance(item, _End):
                        return item.value
                    fresh = False
                    yield item
            except GeneratorExit:
                raise
            except BaseException as error:
                if not fresh or not self._is_retried(error, retry, ticket):
                    hide_frames(error)
                    raise
            self._pause(retry, ticket)

    def _iterate_once(self, args: Any, kwargs: Any, ticket: Ticket | None) -> Iterator[Any]:
        from atoll.sdk.display.output import CallerStreams  # as in `_run_once`

        prepared = self._prepare()
        request = _request(prepared, args, kwargs, ticket)
        call = request.call
        streams = CallerStreams()
        messages = prepared.host.stream(request.spec, call, request.bundle, streams, ticket)
        try:
            with contextlib.closing(messages):  # type: ignore[type-var]  # a generator
                for message in messages:
                    value = prepared.value_of(message, call.id)
                    yield value if message.type == "yield" else _End(value)
        except AtollError as error:
            set_call_id(error, call.id)
            raise
        finally:
            streams.proceeds()

    @property
    def plain_calls(self) -> bool:
        """True if a call is one request and one answer, made once."""
        return not self.is_generator and not self._options.retries.count

    @property
    def host(self) -> Host:
        """The host that runs the function's calls."""
        from atoll.host.local import local

        return self._options.host if self._options.host is not None else local

    def request(self, args: tuple[Any, ...], like: Request | None = None) -> Request:
        """Return one of many calls; with `like`, only its arguments are pickled anew."""
        if like is not None and self._prepared is not None:
            return self._prepared.another(like, args)
        return self._prepare().request(args, {})

    def _prepare(self) -> Prepared:
        """Return the parts that stay from call to call, for the environment as `env_yml` is now."""
        prepared = self._prepared
        if prepared is None:
            if IsolatedFunction.refusal is not None:
                raise IsolatedFunction.refusal(self)
            prepared = self._prepared = Prepared(self.__wrapped__, self._options, self.lease_spec(), self._source)
        elif self._options.follows_files:
            found = conda_options.contents(vars(self._options))
            if found != self._contents:
                prepared.renew(self._environment_of(found))
                self._contents = found
        return prepared


def _request(prepared: Prepared, args: Any, kwargs: Any, ticket: Ticket | None) -> Request:
    if ticket is None:
        return prepared.request(args, kwargs, direct=True)
    return prepared.request(args, kwargs, ticket.call_id, ticket.made_at, ticket.direct)


class _End(NamedTuple):
    """The end of a generator, with its return value."""

    value: Any


@overload
def isolated(kind: Callable[P, R], /) -> IsolatedFunction[P, R]: ...
@overload
def isolated(kind: str = "virtualenv", **options: Any) -> Callable[[Callable[P, R]], IsolatedFunction[P, R]]: ...


def isolated(kind: Any = "virtualenv", **options: Any) -> Any:
    """Mark a function to run in an environment of its own: `@isolated`, `@isolated()`, `@isolated(kind, ...)`.

    Args:
        kind: `virtualenv` or `conda`.
        options: see `options.Options`.

    Raises:
        TypeError: an option is unknown or of the wrong type; names the nearest valid one.
        ValueError: an option's value is out of range.
    """
    try:
        if callable(kind) and not isinstance(kind, str):
            return IsolatedFunction(kind, Options().with_changes(options))
        checked = Options().with_changes({"kind": kind, **options})
    except (TypeError, ValueError) as error:
        hide_frames(error, is_report=True)
        raise
    return lambda function: IsolatedFunction(function, checked)
