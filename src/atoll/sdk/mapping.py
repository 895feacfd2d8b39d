"""`map`: many calls of one function, with bounded work in flight; results in order, or as they come.

The calls are made by the host's lanes, a thread for each lease; the thread that takes the results unpickles them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from atoll.host.pipelining import Lanes
from atoll.sdk.futures import ENDED_SECONDS, THREADS, hide_frames, stopped
from atoll.sdk.map_items import MapItems, MappedFunction

if TYPE_CHECKING:
    from atoll.sdk.display.map_bar import Counts, MapBar

DIRECT = (list, tuple, range, str, bytes)
"""Types whose iteration neither blocks nor fails; that of a derived class may."""


def is_direct(*iterables: object) -> bool:
    """Return whether iterating over these neither blocks nor fails."""
    return all(type(iterable) in DIRECT for iterable in iterables)


def results(
    function: MappedFunction,
    items: Iterator[Iterable[Any]],
    inputs: tuple[Any, ...],
    *,
    return_exceptions: bool,
    progress: bool | str | None = None,
    ordered: bool = True,
) -> Iterator[Any]:
    """Give the result of each call; see `IsolatedFunction.map` and `starmap`.

    Args:
        inputs: the iterables from which `items` comes.

    Raises:
        TypeError: `progress` is something else.
    """
    if not (progress is None or isinstance(progress, (bool, str))):
        raise TypeError(f"`progress` must be True, False, a title or None, is {progress!r}")
    if function.options.on_done is None:
        return _results(function, items, inputs, return_exceptions, progress, ordered)
    from atoll.sdk.call import name_of
    from atoll.sdk.display.announce import announced_items  # for few functions

    silent = function.on(on_done=None)  # one notification for all of them
    found = _results(silent, items, inputs, return_exceptions, progress, ordered)
    return announced_items(function.host, name_of(function.__wrapped__), found)


def _results(
    function: MappedFunction,
    items: Iterator[Iterable[Any]],
    inputs: tuple[Any, ...],
    return_exceptions: bool,
    progress: bool | str | None,
    ordered: bool,
) -> Iterator[Any]:
    jobs = MapItems(function, items, direct=is_direct(*inputs), ordered=ordered)
    lanes = Lanes(function.host, jobs, THREADS) if function.plain_calls else None
    if lanes is not None:
        jobs.busy = lambda: lanes.busy
    bar = jobs.bar = _bar(function, jobs, lanes, inputs, progress)
    ended = False
    ending: str | None = "failed"
    try:
        if lanes is not None:
            jobs.on_arrival = lanes.widen
            lanes.start()
        else:
            jobs.submit_all()
        while True:
            outcome = jobs.next_outcome()
            if outcome is None:
                ended, ending = True, ""
                return
            try:
                value = outcome()
            except Exception as error:
                jobs.add_note(error)
                if not return_exceptions:
                    if isinstance(error, StopIteration):  # no generator may raise that
                        jobs.add_note(raised := stopped(error))
                        raise raised from error
                    raise
                hide_frames(error)
                value = error
            yield value
    except GeneratorExit:
        ending = None
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            ending = "interrupted"
            if bar is not None:
                bar.interrupted()
            _end(jobs, lanes, function.options.grace + ENDED_SECONDS)
        hide_frames(error)
        raise
    finally:
        jobs.close()
        if lanes is not None:
            lanes.stop(kill=not ended)
        if bar is not None:
            bar.end(ending)


def _bar(
    function: MappedFunction, jobs: MapItems, lanes: Lanes | None, inputs: tuple[Any, ...], progress: bool | str | None
) -> MapBar | None:
    """Return the bar of a `map`, if it has one."""
    if progress is False:
        return None
    from atoll.sdk.call import name_of
    from atoll.sdk.display import map_bar  # for programs on a terminal alone

    total = -1

    def counts() -> Counts:
        return jobs.counts(total, len(jobs.running()) if lanes is None else lanes.busy)

    bar = map_bar.make(name_of(function.__wrapped__), progress, counts)
    if bar is not None:
        total = map_bar.total_of(*inputs)
    return bar


def _end(jobs: MapItems, lanes: Lanes | None, seconds: float) -> None:
    """Cancel the calls for a Ctrl-C, and wait until they have ended; a second one ends them at once."""
    ends = (jobs,) if lanes is None else (jobs, lanes)
    try:
        jobs.close()
        if lanes is not None:
            lanes.stop()
        for one in ends:
            one.wait_ended(seconds)
    except KeyboardInterrupt:
        for one in ends:
            one.kill()
