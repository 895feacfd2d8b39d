"""The types that `isolated` gives to functions of each kind, for annotations and type checkers.

At run time each is an `IsolatedFunction`. A call of an `async def` gives its result, and a generator's call its items;
`local` runs the plain function. One with a `setup_function` leaves out the first argument of the plain function.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Never, ParamSpec, Protocol, Self, TypeVar, overload

from atoll.sdk.function import IsolatedFunction
from atoll.sdk.futures import CallFuture

if TYPE_CHECKING:
    from typing import Unpack

    from atoll.host.contract import Host
    from atoll.sdk.aio import Items
    from atoll.sdk.detached.handle import CallHandle
    from atoll.sdk.option_types import ChangedOptions

MYPY = False
"""As in `decorator`."""
P = ParamSpec("P")
Q = ParamSpec("Q")
A = TypeVar("A")
R = TypeVar("R")
S = TypeVar("S")
Y = TypeVar("Y")
Given = TypeVar("Given")
Sent = TypeVar("Sent")
Returned = TypeVar("Returned")
Local = TypeVar("Local")


class IsolatedCoroutine(IsolatedFunction[P, R]):
    """An isolated `async def`: a call gives its result."""

    if TYPE_CHECKING:

        def local(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]: ...  # type: ignore[override]

        @overload
        def __get__(self, instance: None, owner: Any = None) -> Self: ...
        @overload
        def __get__(
            self: Callable[Concatenate[A, Q], R], instance: A, owner: Any = None
        ) -> IsolatedCoroutine[Q, R]: ...
        @overload
        def __get__(self, instance: Any, owner: Any = None) -> Self: ...
        def __get__(self, instance: Any, owner: Any = None) -> Any: ...


class IsolatedGenerator(IsolatedFunction[P, Given], Generic[P, Given, Y]):
    """An isolated generator function: a call gives an iterator of its items, a future the list of them."""

    if TYPE_CHECKING:

        def submit(self, /, *args: P.args, **kwargs: P.kwargs) -> CallFuture[list[Y]]: ...  # type: ignore[override]

        def spawn(self, /, *args: P.args, **kwargs: P.kwargs) -> CallHandle[list[Y]]: ...  # type: ignore[override]

        def aio(self, /, *args: P.args, **kwargs: P.kwargs) -> Items[Y]: ...  # type: ignore[override]

        @overload  # type: ignore[override]
        def __get__(self, instance: None, owner: Any = None) -> Self: ...
        @overload
        def __get__(
            self: IsolatedGenerator[Concatenate[A, Q], Given, Y], instance: A, owner: Any = None
        ) -> IsolatedGenerator[Q, Given, Y]: ...
        @overload
        def __get__(self, instance: Any, owner: Any = None) -> Self: ...
        def __get__(self, instance: Any, owner: Any = None) -> Any: ...


class IsolatedAsyncGenerator(IsolatedGenerator[P, Generator[Y, None, None], Y], Generic[P, Y]):
    """An isolated async generator function: a call gives an iterator of its items, `aio` an asynchronous one."""

    if TYPE_CHECKING:

        def local(self, /, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[Y, Any]: ...  # type: ignore[override]


class SetUp(Generic[S, P, Local]):
    """The part of a function with a `setup_function` that has the plain function's arguments."""

    if TYPE_CHECKING:

        def local(self, setup: S, /, *args: P.args, **kwargs: P.kwargs) -> Local: ...

        @overload
        def on(
            self, to: Host | None = None, /, *, setup_function: None, **options: Unpack[ChangedOptions]
        ) -> IsolatedFunction[Concatenate[S, P], Any]: ...
        @overload
        def on(
            self,
            to: Host | None = None,
            /,
            *,
            setup_function: Callable[[], S] | Callable[[], Coroutine[Any, Any, S]] = ...,
            **options: Unpack[ChangedOptions],
        ) -> Self: ...
        def on(self, to: Host | None = None, /, **options: Any) -> Any: ...


class SetUpFunction(SetUp[S, P, R], IsolatedFunction[P, R], Generic[S, P, R]):  # type: ignore[misc]
    """A function with a `setup_function`."""


class SetUpCoroutine(SetUp[S, P, Coroutine[Any, Any, R]], IsolatedCoroutine[P, R], Generic[S, P, R]):  # type: ignore[misc]
    """An `async def` with a `setup_function`."""


class SetUpGenerator(SetUp[S, P, Given], IsolatedGenerator[P, Given, Y], Generic[S, P, Given, Y]):  # type: ignore[misc]
    """A generator function with a `setup_function`."""


class SetUpAsyncGenerator(SetUp[S, P, AsyncGenerator[Y, Any]], IsolatedAsyncGenerator[P, Y], Generic[S, P, Y]):  # type: ignore[misc]
    """An async generator function with a `setup_function`."""


# The first overload of each is for results of the type `Any`, which would fit all others as well.


class Decorator(Protocol):
    """The decorator that `isolated(...)` gives."""

    if not MYPY:

        @overload
        def __call__(self, function: Callable[P, Never], /) -> IsolatedFunction[P, Any]: ...

    @overload
    def __call__(self, function: Callable[..., Never], /) -> IsolatedFunction[..., Any]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> IsolatedCoroutine[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, AsyncIterator[Y]], /) -> IsolatedAsyncGenerator[P, Y]: ...
    @overload
    def __call__(
        self, function: Callable[P, Generator[Y, Sent, Returned]], /
    ) -> IsolatedGenerator[P, Generator[Y, Sent, Returned], Y]: ...
    @overload
    def __call__(self, function: Callable[P, Iterator[Y]], /) -> IsolatedGenerator[P, Iterator[Y], Y]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> IsolatedFunction[P, R]: ...


class SetUpDecorator(Protocol[S]):
    """The decorator that `isolated(setup_function=...)` gives; the result of type `S` is the first argument."""

    @overload
    def __call__(self, function: Callable[Concatenate[S, P], Never], /) -> SetUpFunction[S, P, Any]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, function: Callable[Concatenate[S, P], Coroutine[Any, Any, R]], /) -> SetUpCoroutine[S, P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, function: Callable[Concatenate[S, P], AsyncIterator[Y]], /) -> SetUpAsyncGenerator[S, P, Y]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[S, P], Generator[Y, Sent, Returned]], /
    ) -> SetUpGenerator[S, P, Generator[Y, Sent, Returned], Y]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[S, P], Iterator[Y]], /
    ) -> SetUpGenerator[S, P, Iterator[Y], Y]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[S, P], R], /) -> SetUpFunction[S, P, R]: ...
