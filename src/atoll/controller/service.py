"""The service `controller.IsolateController`: its methods, and errors as the clients read them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from atoll import errors
from atoll.controller import accounts, applications, builds, crons, observing, runs
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
        url: that clients reach the server by.
        api: name and port that functions reach it by, which begin with `api`; empty where they cannot.
    """

    def __init__(self, server: str, url: str, api: str = "") -> None:
        self.callers = Callers(server)
        self.url, self.api = url, api
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
    "BuildEnvironment": ("BuildEnvironmentRequest", builds.build),
    "RegisterApplication": ("RegisterApplicationRequest", applications.register),
    "GetLogs": ("GetLogsRequest", observing.logs),
}
"""Methods that answer with a stream: the message that each takes, and what answers it."""
UNARY: dict[str, tuple[str, Any]] = {
    "CreateUserKey": ("CreateUserKeyRequest", accounts.make_key),
    "ListUserKeys": ("Empty", accounts.list_keys),
    "RevokeUserKey": ("RevokeUserKeyRequest", accounts.revoke_key),
    "SetSecret": ("SetSecretRequest", accounts.set_secret),
    "ListSecrets": ("ListSecretsRequest", accounts.list_secrets),
    "ListEnvironments": ("Empty", accounts.list_environments),
    "CreateEnvironment": ("CreateEnvironmentRequest", accounts.create_environment),
    "DeleteEnvironment": ("DeleteEnvironmentRequest", accounts.delete_environment),
    "ListAliases": ("ListAliasesRequest", applications.list_aliases),
    "SetAlias": ("SetAliasRequest", applications.set_alias),
    "DeleteAlias": ("DeleteAliasRequest", applications.delete_alias),
    "UpdateApplication": ("UpdateApplicationRequest", applications.update),
    "ListApplications": ("ListApplicationsRequest", applications.list_applications),
    "DeleteApplication": ("DeleteApplicationRequest", applications.delete_application),
    "RolloutApplication": ("RolloutApplicationRequest", applications.roll_out),
    "ListRunners": ("ListRunnersRequest", applications.list_runners),
    "ListAliasRunners": ("ListAliasRunnersRequest", applications.list_runners),
    "StopRunner": ("RunnerRequest", applications.stop_runner),
    "KillRunner": ("RunnerRequest", applications.stop_runner),
    "RegisterCron": ("RegisterCronRequest", crons.register),
    "ListCrons": ("Empty", crons.list_all),
    "CancelCron": ("CronRequest", crons.cancel),
    "ListActivations": ("CronRequest", crons.activations),
    "GetActivationLogs": ("GetActivationLogsRequest", crons.logs),
    "WorkerStatusList": ("WorkerStatusListRequest", observing.workers),
}
"""Methods with one answer."""
