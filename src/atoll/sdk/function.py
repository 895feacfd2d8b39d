"""Isolated functions: the methods that their users call."""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from atoll.sdk.attempts import CallableFunction
from atoll.sdk.batches import Batches
from atoll.sdk.call import name_of
from atoll.sdk.futures import CallFuture, Job, hide_frames, threads
from atoll.sdk.options import Options, signature

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import (
        Self,  # functions may run on Python 3.10
        Unpack,
    )

    from atoll.host.contract import Host
    from atoll.sdk.detached.handle import CallHandle
    from atoll.sdk.option_types import ChangedOptions
    from atoll.sdk.serving import Endpoint

P = ParamSpec("P")
Q = ParamSpec("Q")
A = TypeVar("A")
R = TypeVar("R")


class CallSignature:
    """The signature of a call, where a `setup_function` gives the first argument of the plain function."""

    def __get__(self, function: CallableFunction | None, owner: Any = None) -> inspect.Signature:
        if function is None or function.options.setup_function is None:
            raise AttributeError("__signature__")  # `inspect` goes on to the plain function
        plain = inspect.signature(function.__wrapped__)
        parameters = list(plain.parameters.values())
        if parameters and parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL:
            del parameters[0]
        return plain.replace(parameters=parameters)


class IsolatedFunction(Batches, Generic[P, R]):
    """A function that runs in a sandbox with an environment of its own, and sees the user's `/data`.

    Made by `isolated`. Calling it runs one call and waits for its result; what the function prints appears here as
    it is printed. An exception of the function is raised here, with its remote frames in the traceback.

    Raises:
        EnvironmentBuildError, SerializationError, WorkerDied, RemoteError, PythonVersionMismatch, OperatorError: from
            each of the methods that run a call; see `atoll.errors`.
    """

    __slots__ = ()

    __wrapped__: Callable[P, R]
    __signature__ = CallSignature()

    def __init__(self, function: Callable[P, R], options: Options) -> None:
        if not callable(function):
            hint = "; write `@classmethod` above `@isolated`" if isinstance(function, classmethod) else ""
            raise TypeError(f"`isolated` needs something that can be called, not {function!r}{hint}")
        functools.update_wrapper(self, function)
        super().__init__(function, options)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            if self.is_generator:
                return self._iterate(args, kwargs)  # type: ignore[return-value]  # `R` is an iterator then
            return self._run(args, kwargs, None)  # type: ignore[no-any-return]
        except BaseException as error:
            hide_frames(error)
            raise

    @overload
    def __get__(self, instance: None, owner: Any = None) -> Self: ...
    @overload
    def __get__(self: Callable[Concatenate[A, Q], R], instance: A, owner: Any = None) -> IsolatedFunction[Q, R]: ...
    @overload  # the attribute is a static method
    def __get__(self, instance: Any, owner: Any = None) -> Self: ...
    def __get__(self: Any, instance: Any, owner: Any = None) -> Any:
        if instance is None or self._bound is not None or isinstance(self.__wrapped__, staticmethod):
            return self
        return bind(self, instance)

    def __repr__(self) -> str:
        return f"<isolated {name_of(self.__wrapped__)}>"

    def __reduce__(self) -> str | tuple[Any, ...]:
        if self._bound is not None:
            return bind, self._bound
        from atoll.payload.reducers import named  # keeps `from atoll import isolated` cheap

        return named.reduce_by_name(self, "isolated function", self.__atoll_reduce__)

    def __atoll_reduce__(self) -> tuple[Any, ...]:
        """Reduce it by value, for calls and for cloudpickle."""
        if self._bound is not None:
            return bind, self._bound
        return IsolatedFunction, (self.__wrapped__, self._options.closed())

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # as plain functions are

    @property
    def __atoll_function__(self) -> Callable[P, R]:
        """The plain function, for pickles that name it by its module."""
        return self.__wrapped__

    def local(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the plain function in this process."""
        try:
            return self.__wrapped__(*args, **kwargs)
        except BaseException as error:
            hide_frames(error)
            raise

    @overload
    def on(self, to: Host | None = None, /, **options: Unpack[ChangedOptions]) -> Self: ...
    @overload
    def on(
        self: Callable[Concatenate[A, Q], R],
        to: Host | None = None,
        /,
        *,
        setup_function: Callable[[], A],
        **options: Unpack[ChangedOptions],
    ) -> IsolatedFunction[Q, R]: ...
    def on(self: Any, host: Host | None = None, **options: Any) -> Any:
        """Return a function with these options changed and all others kept.

        Raises:
            TypeError, ValueError: an option is unknown or wrong.
        """
        try:
            options = options if host is None else {**options, "host": host}
            if self._bound is not None:
                function, instance = self._bound
                return bind(function.on(**options), instance)
            return IsolatedFunction(self.__wrapped__, self._options.with_changes(options))
        except (TypeError, ValueError) as error:
            hide_frames(error, is_report=True)
            raise

    def submit(self, /, *args: P.args, **kwargs: P.kwargs) -> CallFuture[R]:
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

    def serve(self, alias: str = "", *, auth: str = "private", **serving: Any) -> Endpoint:
        """Register the function as an endpoint of its server, and return that with its address.

        Args:
            alias: a name in the address that points to the newest revision; without one the revision's id is there.
            auth: who may call: `private` (the owner's keys), `shared` (each user of the server) or `public`.
            serving: `min_concurrency` (runners that are kept; 0), `max_concurrency` (the most; 2), `max_multiplexing`
                (requests of a runner at a time; 1), `keep_alive` (seconds that an idle one is kept; the function's),
                `startup_timeout` (seconds until its port must answer; 600), `request_timeout` (seconds until an answer
                must begin; 3600, 0 for none), `health_path` (a path that must answer 200 first), `rate_limit` (requests a
                minute of one caller), `cors` (origins of pages that may call), `enveloped` (the answer of `serve=True` is
                `{"result": …}`, as clients of 2023 read it).

        Raises:
            TypeError: there is no such option.
            ValueError: it has neither `serve=True` nor an `exposed_port`.
            ResourcesUnavailable: its host is no server.
        """
        from atoll.sdk.serving import serve  # most programs serve nothing

        return serve(self, alias, auth, serving)

    def spawn(self, /, *args: P.args, **kwargs: P.kwargs) -> CallHandle[R]:
        """Begin a call that outlives this program, and return its handle.

        When this returns, the host keeps function, modules and arguments on its disk: the program may end, a connection
        may drop. `CallHandle.from_id(handle.id)` finds the call again from any program, `atoll attach ID` from the command
        line. The result of a generator function is the list of its items.

        Raises:
            SerializationError: an argument cannot be sent.
            DetachedFull, DiskFull: there is no room for it; nothing was kept.
            ResourcesUnavailable: a function asks.
        """
        from atoll.sdk.detached import spawning
        from atoll.sdk.detached.handle import CallHandle

        try:
            return CallHandle(spawning.spawn(self, args, kwargs), self._options.host)
        except BaseException as error:
            hide_frames(error)
            raise

    def aio(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Run a call from asyncio: `await f.aio(...)`, or `async for item in f.aio(...)` for a generator function.

        Awaited, the call of a generator function gives the list of its items.

        A task that is cancelled while it waits has its call cancelled, running or not.
        """
        from atoll.sdk import aio

        if self.is_generator:
            return aio.Items(aio.items(self, args, kwargs))  # type: ignore[return-value]  # see `shapes.IsolatedGenerator`
        return aio.result(self, args, kwargs)


IsolatedFunction.on.__signature__ = signature(  # type: ignore[attr-defined]
    inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY),
    inspect.Parameter("host", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None),
)


def bind(function: IsolatedFunction[..., Any], instance: Any) -> IsolatedFunction[..., Any]:
    """Return the function as the method of an object, which is the first argument of each call."""
    method: Any = object.__new__(type(function))
    vars(method).update(vars(function))
    for name in ("_is_generator", "_options", "_source"):
        setattr(method, name, getattr(function, name))
    method._prepared = method._contents = None
    method._bound = function, instance
    method.__wrapped__ = types.MethodType(function.__wrapped__, instance)
    return method  # type: ignore[no-any-return]
