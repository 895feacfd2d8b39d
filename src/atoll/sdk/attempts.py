"""The calls of an isolated function: its requests and the specs in them, a call's attempts, and a generator's items."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from atoll import file_stamp
from atoll.errors import AtollError, set_call_id
from atoll.model.specs import NO_NUMBERS, EnvironmentSpec, LeaseSpec, Numbers
from atoll.sdk import conda_options
from atoll.sdk.call import MethodCalls, Prepared, Request, identity_of, name_of
from atoll.sdk.futures import hide_frames, new_ticket
from atoll.sdk.options import Options, check_python_version, is_generator

if TYPE_CHECKING:
    from atoll.host.contract import Host, Ticket


class CallableFunction:
    """A function with its options, as the parts of the SDK that make its calls know it.

    `IsolatedFunction` adds the methods for users.
    """

    # `functools.wraps` copies a function's `__dict__`: it has only what belongs to the plain function too.
    __slots__ = ("__dict__", "__weakref__", "_bound", "_contents", "_is_generator", "_options", "_prepared", "_source")

    __name__: str
    __wrapped__: Callable[..., Any]
    refusal: ClassVar[Callable[[Any], BaseException] | None] = None
    """While a program is imported only for its functions: the error of the calls that it makes meanwhile."""

    def __init__(self, function: Callable[..., Any], options: Options) -> None:
        self.__wrapped__ = function
        self._options = options.located(function)
        self._source = file_stamp.source_of(function)
        self._prepared: Prepared | MethodCalls | None = None
        self._bound: tuple[CallableFunction, Any] | None = None
        """Of a method of an object: the function of the class, and the object."""
        self._contents: conda_options.Contents | None = None
        self._is_generator: bool | None = None

    @property
    def options(self) -> Options:
        """The function's options."""
        return self._options

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
            numbers=_numbers(self._options),
            secrets=self._options.secrets,
        )

    @property
    def is_generator(self) -> bool:
        """True if a call gives items one by one."""
        if self._is_generator is None:
            self._is_generator = is_generator(self.__wrapped__)
        return self._is_generator

    def _run(self, args: Any, kwargs: Any, ticket: Ticket | None) -> Any:
        if self._options.on_done is None:
            return self._attempt(args, kwargs, ticket)
        from atoll.sdk.display.announce import announced  # for few functions

        ticket = ticket or new_ticket()
        with announced(self.host, name_of(self.__wrapped__), ticket.call_id):
            return self._attempt(args, kwargs, ticket)

    def _attempt(self, args: Any, kwargs: Any, ticket: Ticket | None) -> Any:
        if not self._options.retries.count:
            return self._run_once(args, kwargs, ticket)
        ticket = ticket or new_ticket()
        for retry in itertools.count():
            try:
                return self._run_once(args, kwargs, ticket, retry)
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

    def _next_attempt(self, error: BaseException | None, retry: int, ticket: Ticket | None) -> tuple[int, int] | None:
        """Return the number of the next attempt, and that of the last possible one; None if there is none."""
        if error is None or not self._options.retries.count or not self._is_retried(error, retry, ticket):
            return None
        return retry + 2, self._options.retries.count + 1

    def _run_once(self, args: Any, kwargs: Any, ticket: Ticket | None, retry: int = 0) -> Any:
        from atoll.sdk.display.output import CallerStreams  # keeps `from atoll import isolated` cheap

        prepared = self._prepare()
        request = _request(prepared, args, kwargs, ticket)
        call = request.call
        streams = CallerStreams(call.id, call.name)
        failed = True
        try:
            message = prepared.host.run(request.spec, call, request.bundle, streams, ticket)
            failed = message.type == "error"
            if failed and self._options.retries.count:  # its type says whether the call is made again
                return prepared.value_of(message, call.id)
        except AtollError as error:
            set_call_id(error, call.id)
            raise
        finally:
            again = self._next_attempt(sys.exc_info()[1], retry, ticket) if failed else None
            streams.ended(failed=failed, retry=again)
        return prepared.value_of(message, call.id)

    def _iterate(self, args: Any, kwargs: Any, ticket: Ticket | None = None) -> Generator[Any, None, Any]:
        """Run a generator's call from the first `next` on; made again only while it has given nothing."""
        ticket = ticket or new_ticket()
        if self._options.on_done is None:
            return (yield from self._iterate_attempts(args, kwargs, ticket))
        from atoll.sdk.display.announce import announced  # as in `_run`

        with announced(self.host, name_of(self.__wrapped__), ticket.call_id):
            return (yield from self._iterate_attempts(args, kwargs, ticket))

    def _iterate_attempts(self, args: Any, kwargs: Any, ticket: Ticket) -> Generator[Any, None, Any]:
        for retry in itertools.count():
            fresh = True
            try:
                for item in self._iterate_once(args, kwargs, ticket, retry):
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

    def _iterate_once(self, args: Any, kwargs: Any, ticket: Ticket, retry: int) -> Iterator[Any]:
        from atoll.sdk.display.output import CallerStreams  # as in `_run_once`

        prepared = self._prepare()
        request = _request(prepared, args, kwargs, ticket)
        call = request.call
        streams = CallerStreams(call.id, call.name)
        failed = fresh = True
        messages = prepared.host.stream(request.spec, call, request.bundle, streams, ticket)
        try:
            with contextlib.closing(messages):  # type: ignore[type-var]  # a generator
                for message in messages:
                    failed = message.type == "error"
                    value = prepared.value_of(message, call.id)
                    streams.rests()
                    fresh = False
                    yield value if message.type == "yield" else _End(value)
                    streams.goes_on()
        except AtollError as error:
            set_call_id(error, call.id)
            raise
        finally:
            again = self._next_attempt(sys.exc_info()[1], retry, ticket) if failed and fresh else None
            streams.ended(failed=failed, retry=again)

    @property
    def plain_calls(self) -> bool:
        """True if a call is one request and one answer, made once."""
        return not self.is_generator and not self._options.retries.count

    @property
    def host(self) -> Host:
        """The host that runs the function's calls."""
        if self._options.host is not None:
            return self._options.host
        from atoll.host.default import default_host

        return default_host()

    def request(self, args: tuple[Any, ...], like: Request | None = None) -> Request:
        """Return one of many calls; with `like`, only its arguments are pickled anew."""
        if like is not None and self._prepared is not None:
            return self._prepared.another(like, args)
        return self._prepare().request(args, {})

    def _prepare(self) -> Prepared | MethodCalls:
        """Return the parts that stay from call to call, for the environment as `env_yml` is now."""
        prepared = self._prepared
        if prepared is None and self._bound is not None:
            prepared = self._prepared = MethodCalls(self._bound[0]._prepare(), self._bound[1])
        elif prepared is None:
            refuse = type(self).refusal
            if refuse is not None:
                raise refuse(self)
            prepared = self._prepared = Prepared(self.__wrapped__, self._options, self.lease_spec(), self._source)
        elif self._options.follows_files:
            found = conda_options.contents(vars(self._options))
            if found != self._contents:
                prepared.renew(self._environment_of(found))
                self._contents = found
        return prepared


def _numbers(options: Options) -> Numbers:
    given = options.cpu, options.memory, options.gpu, options.disk
    if given == (None, None, None, None):
        return NO_NUMBERS
    from atoll.sdk import resource_options  # as in `options`

    return resource_options.numbers(*given)


def _request(prepared: Prepared | MethodCalls, args: Any, kwargs: Any, ticket: Ticket | None) -> Request:
    if ticket is None:
        return prepared.request(args, kwargs, direct=True)
    return prepared.request(args, kwargs, ticket.call_id, ticket.made_at, ticket.direct)


class _End(NamedTuple):
    """The end of a generator, with its return value."""

    value: Any
