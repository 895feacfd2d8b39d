"""`@isolated`: marks a function to run in an environment of its own."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, overload

from atoll.sdk.function import IsolatedFunction
from atoll.sdk.futures import hide_frames
from atoll.sdk.options import Options, signature

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
    from typing import Literal, Never, ParamSpec, TypeVar, Unpack

    from atoll.sdk.option_types import CondaOptions, VirtualenvOptions
    from atoll.sdk.shapes import (
        Decorator,
        IsolatedAsyncGenerator,
        IsolatedCoroutine,
        IsolatedGenerator,
        SetUpDecorator,
    )

    P = ParamSpec("P")
    R = TypeVar("R")
    S = TypeVar("S")
    Y = TypeVar("Y")
    Sent = TypeVar("Sent")
    Returned = TypeVar("Returned")


MYPY = False
"""True for mypy alone, which takes a function with a variable of types as its result for one that never returns."""


# `@isolated(...)`
@overload
def isolated(
    kind: Literal["virtualenv"] = "virtualenv", *, setup_function: None = None, **options: Unpack[VirtualenvOptions]
) -> Decorator: ...
@overload
def isolated(kind: Literal["conda"], *, setup_function: None = None, **options: Unpack[CondaOptions]) -> Decorator: ...
@overload
def isolated(
    kind: Literal["virtualenv"] = "virtualenv",
    *,
    setup_function: Callable[[], Coroutine[Any, Any, S]],
    **options: Unpack[VirtualenvOptions],
) -> SetUpDecorator[S]: ...
@overload
def isolated(
    kind: Literal["conda"], *, setup_function: Callable[[], Coroutine[Any, Any, S]], **options: Unpack[CondaOptions]
) -> SetUpDecorator[S]: ...
@overload
def isolated(
    kind: Literal["virtualenv"] = "virtualenv", *, setup_function: Callable[[], S], **options: Unpack[VirtualenvOptions]
) -> SetUpDecorator[S]: ...
@overload
def isolated(
    kind: Literal["conda"], *, setup_function: Callable[[], S], **options: Unpack[CondaOptions]
) -> SetUpDecorator[S]: ...


# `@isolated` and `isolated(function, ...)`, as in `shapes.Decorator`; options with types would make a checker's report of
# a mistake very long: they are checked when the program runs
if not MYPY:

    @overload
    def isolated(
        kind: Callable[P, Never], /, *, setup_function: None = None, **options: Any
    ) -> IsolatedFunction[P, Any]: ...


@overload
def isolated(
    kind: Callable[..., Never], /, *, setup_function: None = None, **options: Any
) -> IsolatedFunction[..., Any]: ...
@overload
def isolated(
    kind: Callable[P, Coroutine[Any, Any, R]], /, *, setup_function: None = None, **options: Any
) -> IsolatedCoroutine[P, R]: ...
@overload
def isolated(
    kind: Callable[P, AsyncIterator[Y]], /, *, setup_function: None = None, **options: Any
) -> IsolatedAsyncGenerator[P, Y]: ...
@overload
def isolated(
    kind: Callable[P, Generator[Y, Sent, Returned]], /, *, setup_function: None = None, **options: Any
) -> IsolatedGenerator[P, Generator[Y, Sent, Returned], Y]: ...
@overload
def isolated(
    kind: Callable[P, Iterator[Y]], /, *, setup_function: None = None, **options: Any
) -> IsolatedGenerator[P, Iterator[Y], Y]: ...
@overload
def isolated(kind: Callable[P, R], /, *, setup_function: None = None, **options: Any) -> IsolatedFunction[P, R]: ...


def isolated(kind: Any = "virtualenv", **options: Any) -> Any:  # type: ignore[misc]  # `kind` is no option of a function
    """Mark a function to run in an environment of its own: `@isolated`, `@isolated()`, `@isolated(kind, ...)`.

    All options beside `kind` are given by name.

    Args:
        kind: `"virtualenv"` (default) or `"conda"`.
        requirements: packages, `["numpy>=2"]`, or a file of the project, `"requirements.txt"`; default: none.
        python_version: a version such as `"3.12"`; default: the caller's.
        keep_alive: idle seconds after which a worker ends; default 10.
        env: environment variables of the call; default: none.
        network: `"outbound"`, `"none"` or `"host"`; default: `"outbound"` where the machine can, else `"host"`.
        mounts: directories of the machine, shown read-only, `{"/datasets": "/home/me/data"}`; default: none.
        local_modules: names or paths of modules that travel as source; default: found automatically.
        host: the host that runs the function; default: `atoll.local`.
        timeout: seconds that a call may take in its worker, then `CallTimeout`; default: no limit.
        retries: further attempts for lost workers, `3` or `Retries(3, on=(ConnectionError,))`; default 0.
        setup_function: runs once in each worker; its result is the first argument of every call. Default: none.
        machine_type: `"XS"`, `"S"`, `"M"`, `"L"`, `"XL"`, `"GPU-T4"` or `"GPU"`; default: what the machine has.
        cpu: cores, at least 0.01; default: the machine type's.
        memory: `"12GB"`, `"12GiB"` or bytes, at least 32 MB, then `OutOfMemory`; default: the machine type's.
        gpu: a number, `"A100"` or `"A100:2"`; default: the machine type's.
        disk: size of a `/tmp` on the disk, `"50GB"` or bytes; default: a `/tmp` in memory.
        max_concurrency: calls of this function at a time, over all programs of the user; default: no bound.
        packages: conda only, match specs such as `"numpy>=2"`; default: none.
        channels: conda only, names, addresses or directories; default `conda-forge` and `pytorch`.
        env_yml: conda only, path of an `environment.yml`; default: none.
        env_dict: conda only, the contents of such a file; default: none.
        pip: conda only, like `requirements`, on top of the packages; default: none.
        results: `"pickle"` (default), or `"data"` for results that are decoded without running code.
        preload: modules that each new worker has imported already; default: those that earlier calls have imported.
        umask: the file mode mask of the function; default `0o022`.
        grace: seconds, 0 to 600, that a call may go on after it was asked to end; default 2.
        terminal: False for pipes; default: a terminal where the caller's output goes to one.
        on_done: `"notify"` tells you when a detached call is over, or one that took long.
        secrets: names of your secrets that it has as variables; default: all, with `results="data"` none.
        serve: it may be served as a web app at a server.
        exposed_port: the port of a server that it starts itself.
        schedule: a cron expression by which a server calls it, once it is deployed there.
        timezone: of `schedule`.
        overlap: `"skip"`, `"queue"` or `"allow"` a run whose predecessor has not ended.
        missed: `"skip"` runs that the server has missed, make them up by `"once"`, or `"all"`.

    Raises:
        TypeError: an option is unknown or of the wrong type; names the nearest valid one.
        ValueError: an option's value is out of range.
    """
    try:
        if callable(kind) or isinstance(kind, classmethod):
            return IsolatedFunction(kind, Options().with_changes(options))
        checked = Options().with_changes({"kind": kind, **options})
    except (TypeError, ValueError) as error:
        hide_frames(error, is_report=True)
        raise
    return lambda function: IsolatedFunction(function, checked)


isolated.__signature__ = signature(  # type: ignore[attr-defined]
    inspect.Parameter("kind", inspect.Parameter.POSITIONAL_OR_KEYWORD, default="virtualenv")
)
