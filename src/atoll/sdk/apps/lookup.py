"""Deployed functions, called from any program without their source."""

from __future__ import annotations

import builtins
import io
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from atoll import errors
from atoll.model.spool import RetryRule, Spool
from atoll.model.stored_call import StoredBundle
from atoll.sdk.call import Request, value_of
from atoll.sdk.function import IsolatedFunction
from atoll.sdk.futures import hide_frames, new_id
from atoll.sdk.options import Options
from atoll.sdk.retries import Retries

if TYPE_CHECKING:
    from atoll.host.contract import Host
    from atoll.model.specs import EnvironmentSpec
    from atoll.wire.frames import Message

MOST_BYTES = 1 << 30
"""The most of a function with its modules, as the server has it."""


class StoredCalls:
    """The parts of a deployed function's calls, as `sdk.call.Prepared` has those of one with its source.

    Raises:
        ValueError: the bytes are no function of this version.
    """

    def __init__(self, data: bytes, host: Host) -> None:
        from atoll.host import index_settings
        from atoll.sdk.display.output import arrangement  # keeps `from atoll import isolated` cheap

        self.host = host
        file = io.BytesIO(data)
        spool = Spool.from_file(file)
        template = spool.template(file)
        if certificates := spool.certificates(file):
            index_settings.learn(certificates)
        names = spool.names(file) if spool.results == "pickle" else None
        bundle = template.bundle
        if spool.modules_bytes:
            bundle = StoredBundle.from_bytes(data[spool.size_bytes :])
        self.rule = spool.retries
        self.like = Request(replace(template.call, names=names), template.spec, bundle)
        self._arrangement = arrangement

    def request(self, args: Any, kwargs: Any, call_id: str = "", made_at: float = 0.0, direct: bool = False) -> Request:  # noqa: ARG002 - no terminal
        """Return a call; see `Prepared.request`."""
        from atoll.payload.functions import dumps_arguments

        arguments, buffers = dumps_arguments(args, kwargs)
        call = self.like.call.again(call_id or new_id(), arguments, tuple(buffers), made_at or time.time())
        return self.like._replace(call=replace(call, streams=self._arrangement()))

    def another(self, like: Request, args: Any) -> Request:  # noqa: ARG002 - all are alike
        """Return a request like this one with other arguments."""
        return self.request(args, {})

    def renew(self, environment: EnvironmentSpec) -> None:
        """Keep the environment: it was deployed with the function."""

    def value_of(self, message: Message, call_id: str) -> Any:
        """Return the value of an answer, or raise its exception."""
        return value_of(message, self.like.call.results, call_id)


class Function(IsolatedFunction[..., Any]):
    """A function that was deployed, as another program calls it: `Function.lookup("app/name").remote(…)`."""

    __slots__ = ("_data", "_place")

    _data: bytes
    _place: str

    @classmethod
    def lookup(cls, name: str, host: Host | None = None) -> Function:
        """Return a deployed function of one's own; it stays the one of this moment, whatever is deployed later.

        Args:
            name: of the app, and of the function in it: `"app/name"`.
            host: the server; by default the one that one is logged in to.

        Raises:
            CallerError: there is no such app or function, or it is served.
            ResourcesUnavailable: the host is no server.
        """
        from atoll.host.default import default_host

        app, _, function = name.partition("/")
        if not app or not function or "/" in function:
            raise ValueError(f'a deployed function is named `"app/name"`, and this is {name!r}')
        found: Any = host if host is not None else default_host()
        server = getattr(found, "server", None)
        if server is None:
            raise errors.ResourcesUnavailable(
                "deployed functions are of a server, and this is the own machine",
                hint="log in with `atoll auth login`, or give `host=Host(URL)`",
            )
        path = f"/v1/apps/{quote(app, safe='')}/functions/{quote(function, safe='')}/call"
        data: bytes = server.ask("GET", path, most=MOST_BYTES)
        return restored(name, data, host)

    @property
    def deployed(self) -> str:
        """App and name, as in `app/name`: `spawn` notes it with its calls, which are then in the queue of the app."""
        return self._place

    def remote(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run one call and return its result, as calling the function does."""
        try:
            return self(*args, **kwargs)
        except BaseException as error:
            hide_frames(error)
            raise

    def on(self, host: Host | None = None, /, **options: Any) -> Any:
        """Return the function on another host; its options are those that it was deployed with.

        Raises:
            TypeError: an option is given.
        """
        if options:
            raise TypeError(
                "the options of a deployed function are those of its deployment: change its file, and deploy"
            )
        return restored(self._place, self._data, host)

    def __repr__(self) -> str:
        return f"<deployed {self._place}>"

    def __reduce__(self) -> Any:
        return restored, (self._place, self._data)

    __atoll_reduce__ = __reduce__


def restored(name: str, data: bytes, host: Host | None = None) -> Function:
    """Return a deployed function from its bytes.

    Raises:
        ProtocolMismatch: they are of another version.
    """
    from atoll.host.default import default_host

    try:
        calls = StoredCalls(data, host if host is not None else default_host())
    except ValueError as error:
        raise errors.ProtocolMismatch(
            f"the deployed function `{name}` cannot be read: {error}", hint="deploy it again by this version"
        ) from error

    def deployed(*_: Any, **__: Any) -> Any:
        raise errors.ResourcesUnavailable(
            f"the source of `{name}` is not here, only the deployed function", hint="call `.remote(…)`"
        )

    deployed.__name__ = deployed.__qualname__ = calls.like.call.name or name
    deployed.__doc__ = None
    spec = calls.like.spec
    options = Options(
        host=host, retries=_retries(calls.rule), grace=spec.grace_seconds, results=calls.like.call.results
    )
    function = Function(deployed, options)
    function._is_generator = calls.like.call.stream
    function._prepared = calls  # type: ignore[assignment]  # it has all that is asked of one
    function._data, function._place = data, name
    return function


def _retries(rule: RetryRule) -> Retries:
    """Return the rule with those of its exceptions that are Python's own: others are not known here."""
    named = (getattr(builtins, name, None) for module, name in rule.on if module == "builtins")
    on = tuple(one for one in named if isinstance(one, type) and issubclass(one, BaseException))
    return Retries(rule.count, on, rule.wait_seconds, rule.factor, rule.most_seconds)
