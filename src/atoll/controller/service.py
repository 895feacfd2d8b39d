"""The service `controller.IsolateController`: its methods, and errors as the clients read them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from atoll import errors
from atoll.controller import runs
from atoll.controller.callers import Caller, Callers, status_of, text_of
from atoll.controller.messages import messages
from atoll.controller.workers import WorkerKeys

NAME = "controller.IsolateController"
_log = logging.getLogger("atoll.controller")

Unary = Callable[[Any, Caller, Any], Awaitable[Any]]
Streaming = Callable[[Any, Caller, Any], AsyncIterator[Any]]


class Service:
    """Answers gRPC calls.

    Args:
        server: path of the Unix socket of the server.
        url: that functions and clients reach the server by; empty for one that only loopback reaches.
    """

    def __init__(self, server: str, url: str = "") -> None:
        self.callers = Callers(server)
        self.url = url
        self.keys = WorkerKeys()

    def handlers(self) -> Any:
        """Return the handlers for a gRPC server."""
        found: dict[str, Any] = {}
        for name, (request, answer) in STREAMS.items():
            found[name] = grpc.unary_stream_rpc_method_handler(
                self._streaming(answer),
                request_deserializer=getattr(messages, request).FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
        for name, (request, answer) in UNARY.items():
            found[name] = grpc.unary_unary_rpc_method_handler(
                self._unary(answer),
                request_deserializer=getattr(messages, request).FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
        return grpc.method_handlers_generic_handler(NAME, found)

    def _streaming(self, answer: Streaming) -> Any:
        async def handle(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                caller = await self.callers.caller(context)
                async for message in answer(request, caller, self):
                    yield message
            except errors.AtollError as error:
                await context.abort(status_of(error), text_of(error))
            except Exception as error:
                await _failed(context, error)

        return handle

    def _unary(self, answer: Unary) -> Any:
        async def handle(request: Any, context: Any) -> Any:
            try:
                return await answer(request, await self.callers.caller(context), self)
            except errors.AtollError as error:
                await context.abort(status_of(error), text_of(error))
            except Exception as error:
                await _failed(context, error)

        return handle


async def _failed(context: Any, error: Exception) -> None:
    if isinstance(error, grpc.aio.BaseError | grpc.aio.AbortError):
        raise error
    _log.exception("controller.failed")
    await context.abort(grpc.StatusCode.INTERNAL, "the server failed\nhint: please report it with the server's log")


STREAMS: dict[str, tuple[str, Any]] = {
    "Run": ("HostedRun", runs.run),
}
UNARY: dict[str, tuple[str, Any]] = {}
