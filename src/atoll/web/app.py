"""A web app around one function: a request's JSON object and query are its keyword arguments.

- `POST /` with a JSON object, `GET /` or `POST /` with a query: the values are converted to the annotations of the
  parameters, a pydantic model among them takes the whole body if it is the only one without a default.
- The result is JSON; a `Response` of Starlette's is the answer itself; items of a generator are streamed as they come, as
  server-sent events where the caller accepts them.
- Arguments that do not fit are status 422 with `detail`, exceptions are status 500.
- `/openapi.json` describes it, `/docs` shows that, `/health` answers while the app serves.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import typing
from collections.abc import AsyncIterator, Callable
from typing import Any

_NONE: Any = inspect.Parameter.empty


def make(function: Callable[..., Any], *first: Any, enveloped: bool = False) -> Any:
    """Return the app.

    Args:
        first: arguments before those of a request: the result of a `setup_function`.
        enveloped: the answer is `{"result": RESULT}`, as clients of the original system's first months read it.
    """
    import fastapi
    import pydantic
    from fastapi.encoders import jsonable_encoder
    from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse

    name = getattr(function, "__name__", "function")
    app = fastapi.FastAPI(title=name, description=inspect.getdoc(function) or "")
    parameters = _parameters(function, len(first))
    whole = _whole(parameters, pydantic.BaseModel)
    model = _model(function, parameters) if whole is None else parameters[whole][0]

    async def arguments(request: Request) -> dict[str, Any]:
        given: dict[str, Any] = dict(request.query_params)
        body = await request.body()
        if body:
            try:
                found = json.loads(body)
            except ValueError as error:
                raise fastapi.HTTPException(400, f"the body is no JSON: {error}") from error
            if not isinstance(found, dict):
                raise fastapi.HTTPException(400, "the body must be a JSON object of the function's arguments")
            given |= found
        try:
            value = model.model_validate(given)
        except pydantic.ValidationError as error:
            detail = json.loads(error.json(include_url=False, include_context=False))
            raise fastapi.HTTPException(422, detail) from None
        if whole is not None:
            return {whole: value}
        extra = value.__pydantic_extra__ or {}
        return {key: getattr(value, key) for key in parameters if key in value.model_fields_set} | extra

    async def answer(request: Request) -> Any:
        given = await arguments(request)
        result = (
            function(*first, **given) if _is_async(function) else await run_in_threadpool(function, *first, **given)
        )
        if inspect.isawaitable(result):
            result = await result
        if isinstance(result, Response):
            return result
        if inspect.isasyncgen(result) or inspect.isgenerator(result):
            items = result if inspect.isasyncgen(result) else iterate_in_threadpool(result)
            events = "text/event-stream" in request.headers.get("accept", "")
            kind = "text/event-stream" if events else "application/x-ndjson"
            return StreamingResponse(_lines(items, jsonable_encoder, events=events), media_type=kind)
        found = jsonable_encoder(result)
        return JSONResponse({"result": found} if enveloped else found)

    async def health() -> dict[str, str]:
        return {"status": "ok"}

    answer.__annotations__ = {"request": Request}  # FastAPI would look a text up in this module
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    parts = schema.pop("$defs", {})
    described = {
        "requestBody": {"content": {"application/json": {"schema": schema}}, "required": bool(schema.get("required"))}
    }
    app.add_api_route("/", answer, methods=["POST"], response_model=None, openapi_extra=described, summary=name)
    app.add_api_route("/", answer, methods=["GET"], response_model=None, include_in_schema=False)
    app.add_api_route("/health", health, methods=["GET"], include_in_schema=False)
    _describe(app, parts)
    return app


def _model(function: Callable[..., Any], parameters: dict[str, tuple[Any, Any]]) -> Any:
    """Return the model of a function's arguments."""
    import pydantic

    fields: Any = {
        key: (Any if kind is _NONE else kind, ... if default is _NONE else default)
        for key, (kind, default) in parameters.items()
    }
    config: Any = {"extra": "allow" if _takes_any(function) else "forbid", "arbitrary_types_allowed": True}
    return pydantic.create_model(f"{function.__name__}_arguments", __config__=config, **fields)


def _describe(app: Any, parts: dict[str, Any]) -> None:
    """Add the schemas of models to the app's description."""
    plain = app.openapi

    def openapi() -> Any:
        found = plain()
        found.setdefault("components", {}).setdefault("schemas", {}).update(parts)
        return found

    app.openapi = openapi


def _put_errors_into_envelopes(app: Any) -> None:
    """Let failures be `{"error": TEXT}`, with status 400 for arguments that do not fit."""
    from fastapi import HTTPException
    from starlette.responses import JSONResponse

    async def refused(_: Any, error: Any) -> JSONResponse:
        return JSONResponse({"error": _text(error.detail)}, 400 if error.status_code == 422 else error.status_code)

    async def failed(_: Any, error: Exception) -> JSONResponse:
        return JSONResponse({"error": f"{type(error).__name__}: {error}"}, 500)

    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(Exception, failed)


def _text(detail: Any) -> str:
    """Return the mistakes of a request as one line."""
    if not isinstance(detail, list):
        return str(detail)
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in detail)


async def _lines(items: AsyncIterator[Any], encode: Callable[[Any], Any], *, events: bool) -> AsyncIterator[str]:
    async for item in items:
        text = item if isinstance(item, str) and events else json.dumps(encode(item))
        yield f"data: {text}\n\n" if events else f"{text}\n"
        await asyncio.sleep(0)


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def _parameters(function: Callable[..., Any], skipped: int) -> dict[str, tuple[Any, Any]]:
    """Return annotation and default of each parameter that a request gives."""
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # an annotation that cannot be evaluated is none
        hints = {}
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = list(inspect.signature(function).parameters.values())[skipped:]
    return {one.name: (hints.get(one.name, _NONE), one.default) for one in found if one.kind in kinds}


def _takes_any(function: Callable[..., Any]) -> bool:
    return any(one.kind is inspect.Parameter.VAR_KEYWORD for one in inspect.signature(function).parameters.values())


def _whole(parameters: dict[str, tuple[Any, Any]], base: type) -> str | None:
    """Return the parameter that takes the whole body: the only one, if that is a model."""
    if len(parameters) != 1:
        return None
    ((name, (kind, _)),) = parameters.items()
    return name if isinstance(kind, type) and issubclass(kind, base) else None


def serve(function: Callable[..., Any], port: int, *first: Any, enveloped: bool = False) -> None:
    """Serve a function on a port until the process is asked to end.

    Args:
        enveloped: as in `make`; failures are `{"error": TEXT}` with status 400 or 500.
    """
    import uvicorn

    app = make(function, *first, enveloped=enveloped)
    if enveloped:
        _put_errors_into_envelopes(app)
    uvicorn.run(app, host="0.0.0.0", port=port, log_level="warning", access_log=False)  # noqa: S104 - the sandbox's own
