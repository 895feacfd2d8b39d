"""Calls for many items: `map` and `starmap` of isolated functions, and their types.

A checker learns the types of a function's arguments, and of an item's result, from its `submit`: `Takes2` is a function
that can be called with two arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, TypeVar, overload

from atoll.sdk.attempts import CallableFunction
from atoll.sdk.futures import hide_frames

if TYPE_CHECKING:
    from typing import Unpack

    from atoll.sdk.detached.batch import BatchHandle
    from atoll.sdk.futures import CallFuture

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
R = TypeVar("R")

if TYPE_CHECKING:
    A_contra = TypeVar("A_contra", contravariant=True)
    B_contra = TypeVar("B_contra", contravariant=True)
    C_contra = TypeVar("C_contra", contravariant=True)

    class Takes(Protocol[R]):
        def submit(self, /, *args: Any, **kwargs: Any) -> CallFuture[R]: ...

    class Takes1(Protocol[A_contra, R]):
        def submit(self, a: A_contra, /) -> CallFuture[R]: ...

    class Takes2(Protocol[A_contra, B_contra, R]):
        def submit(self, a: A_contra, b: B_contra, /) -> CallFuture[R]: ...

    class Takes3(Protocol[A_contra, B_contra, C_contra, R]):
        def submit(self, a: A_contra, b: B_contra, c: C_contra, /, *more: Any) -> CallFuture[R]: ...

    class MapOptions(TypedDict, total=False):
        """The options of `map` and `starmap` beside `return_exceptions`."""

        progress: bool | str | None
        """A bar from the begin, with this title if it is a text; lines where there is no terminal.

        None for a bar on a terminal after a second; False for none.
        """

        ordered: bool
        """False to yield results as they come; default True."""


class Batches(CallableFunction):
    """The calls of a function for many items."""

    __slots__ = ()

    @overload
    def map(
        self: Takes1[A, R],
        iterable: Iterable[A],
        *,
        return_exceptions: Literal[False] = False,
        **options: Unpack[MapOptions],
    ) -> Iterator[R]: ...
    @overload
    def map(
        self: Takes1[A, R], iterable: Iterable[A], *, return_exceptions: bool, **options: Unpack[MapOptions]
    ) -> Iterator[R | Exception]: ...
    @overload
    def map(
        self: Takes2[A, B, R],
        iterable: Iterable[A],
        second: Iterable[B],
        /,
        *,
        return_exceptions: Literal[False] = False,
        **options: Unpack[MapOptions],
    ) -> Iterator[R]: ...
    @overload
    def map(
        self: Takes2[A, B, R],
        iterable: Iterable[A],
        second: Iterable[B],
        /,
        *,
        return_exceptions: bool,
        **options: Unpack[MapOptions],
    ) -> Iterator[R | Exception]: ...
    @overload
    def map(
        self: Takes3[A, B, C, R],
        iterable: Iterable[A],
        second: Iterable[B],
        third: Iterable[C],
        /,
        *more: Iterable[Any],
        return_exceptions: Literal[False] = False,
        **options: Unpack[MapOptions],
    ) -> Iterator[R]: ...
    @overload
    def map(
        self: Takes3[A, B, C, R],
        iterable: Iterable[A],
        second: Iterable[B],
        third: Iterable[C],
        /,
        *more: Iterable[Any],
        return_exceptions: bool,
        **options: Unpack[MapOptions],
    ) -> Iterator[R | Exception]: ...
    def map(
        self: Any,
        iterable: Iterable[Any],
        *more: Iterable[Any],
        return_exceptions: bool = False,
        progress: bool | str | None = None,
        ordered: bool = True,
    ) -> Iterator[Any]:
        """Call the function for each item and yield the results in order, with bounded work in flight.

        Args:
            iterable, more: as the built-in `map` takes them, read as results are taken and a bounded number of items
                ahead of them. What is not a list, tuple, range, string or bytes is read by a thread of its own, so
                that results come also while it blocks.
            return_exceptions: yield the exception of a call that failed in its place, and go on.
            progress: a bar from the begin, with this title if it is a text; lines where there is no terminal. None
                for a bar on a terminal after a second; False for none.
            ordered: False to yield results as they come.

        Raises:
            Exception: of the first call that failed, in its place, or of the input after the results before it; the
                calls behind it are cancelled.
        """
        from atoll.sdk.mapping import results

        items = zip(iterable, *more, strict=False)
        inputs = (iterable, *more)
        return results(self, items, inputs, return_exceptions=return_exceptions, progress=progress, ordered=ordered)

    @overload
    def starmap(
        self: Takes1[A, R],
        iterable: Iterable[tuple[A]],
        *,
        return_exceptions: Literal[False] = False,
        **options: Unpack[MapOptions],
    ) -> Iterator[R]: ...
    @overload
    def starmap(
        self: Takes1[A, R], iterable: Iterable[tuple[A]], *, return_exceptions: bool, **options: Unpack[MapOptions]
    ) -> Iterator[R | Exception]: ...
    @overload
    def starmap(
        self: Takes2[A, B, R],
        iterable: Iterable[tuple[A, B]],
        *,
        return_exceptions: Literal[False] = False,
        **options: Unpack[MapOptions],
    ) -> Iterator[R]: ...
    @overload
    def starmap(
        self: Takes2[A, B, R],
        iterable: Iterable[tuple[A, B]],
        *,
        return_exceptions: bool,
        **options: Unpack[MapOptions],
    ) -> Iterator[R | Exception]: ...
    @overload
    def starmap(
        self: Takes3[A, B, C, R],
        iterable: Iterable[tuple[A, B, C, Unpack[tuple[Any, ...]]]],  # noqa: UP044 - for Python 3.10
        *,
        return_exceptions: Literal[False] = False,
        **options: Unpack[MapOptions],
    ) -> Iterator[R]: ...
    @overload
    def starmap(
        self: Takes3[A, B, C, R],
        iterable: Iterable[tuple[A, B, C, Unpack[tuple[Any, ...]]]],  # noqa: UP044 - for Python 3.10
        *,
        return_exceptions: bool,
        **options: Unpack[MapOptions],
    ) -> Iterator[R | Exception]: ...
    @overload
    def starmap(
        self: Takes[R],
        iterable: Iterable[list[Any] | Iterator[Any]],
        *,
        return_exceptions: Literal[False] = False,
        **options: Unpack[MapOptions],
    ) -> Iterator[R]: ...
    @overload
    def starmap(
        self: Takes[R],
        iterable: Iterable[list[Any] | Iterator[Any]],
        *,
        return_exceptions: bool,
        **options: Unpack[MapOptions],
    ) -> Iterator[R | Exception]: ...
    def starmap(
        self: Any,
        iterable: Iterable[Iterable[Any]],
        *,
        return_exceptions: bool = False,
        progress: bool | str | None = None,
        ordered: bool = True,
    ) -> Iterator[Any]:
        """Like `map`, for items that are tuples of arguments."""
        from atoll.sdk.mapping import results

        items, inputs = iter(iterable), (iterable,)
        return results(self, items, inputs, return_exceptions=return_exceptions, progress=progress, ordered=ordered)

    @overload
    def spawn_map(self: Takes1[A, R], iterable: Iterable[A]) -> BatchHandle[R]: ...
    @overload
    def spawn_map(self: Takes2[A, B, R], iterable: Iterable[A], second: Iterable[B], /) -> BatchHandle[R]: ...
    @overload
    def spawn_map(
        self: Takes3[A, B, C, R],
        iterable: Iterable[A],
        second: Iterable[B],
        third: Iterable[C],
        /,
        *more: Iterable[Any],
    ) -> BatchHandle[R]: ...
    def spawn_map(self: Any, iterable: Iterable[Any], *more: Iterable[Any]) -> BatchHandle[Any]:
        """Begin a detached call for each item, and return the handle of them all.

        The items are read to their end, and all calls are kept before this returns; see `spawn`. The batch can be left,
        found again by `BatchHandle.from_id`, and resumed with the items that failed.

        Args:
            iterable, more: as the built-in `map` takes them.

        Raises:
            ValueError: there is no item.
            SerializationError, DetachedFull, DiskFull, ResourcesUnavailable: as `spawn`.
        """
        from atoll.sdk.detached import spawning
        from atoll.sdk.detached.batch import BatchHandle

        try:
            return BatchHandle(spawning.spawn_map(self, zip(iterable, *more, strict=False)), self.options.host)
        except BaseException as error:
            hide_frames(error)
            raise
