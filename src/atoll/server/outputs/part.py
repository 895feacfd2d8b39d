"""The part of outputs of a server: the route that shows what an endpoint's runners print."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request

from atoll import errors
from atoll.server.endpoints import rows
from atoll.server.endpoints.routes import REVISIONS
from atoll.server.outputs.bodies import Outputs
from atoll.server.outputs.runners import MOST_LISTED, outputs_of
from atoll.server.state import ServerState, principal_of, state_of
from atoll.server.typed import typed
from atoll.terminal_text import cell


def install(state: ServerState) -> None:
    """Add the part."""
    state.routes.append(typed(f"{REVISIONS}/{{revision}}/logs", "GET", read_outputs, answer=Outputs))


async def read_outputs(request: Request) -> Outputs:
    """Read the output of the runners of a revision, or of an alias; with `all=1` of those that are over, too.

    `seen=CALL:BYTES` leaves out so many bytes of a runner's output; it may be given again, for other runners.
    """
    principal, state, name = await principal_of(request), state_of(request), request.path_params["revision"]
    find = partial(rows.find, owner=principal.user, name=name)
    revision = await state.parts["accounts"].database.run(find, writes=False)
    if revision is None or revision.user != principal.user:
        raise errors.CallerError(
            f"there is no alias or revision `{cell(name, 70)}`", hint="see `atoll function list`", status=404
        )
    if not revision.port:
        raise errors.CallerError(
            f"`{revision.function}` is not served, and so has no runners",
            hint="see `atoll crons logs ID ACTIVATION` for a scheduled function, or `atoll logs CALL`",
        )
    query = request.query_params
    return await outputs_of(
        state, principal, revision, _seen(query.getlist("seen")), everything=query.get("all") == "1"
    )


def _seen(texts: list[str]) -> dict[str, int]:
    """Return bytes by the calls of runners.

    Raises:
        CallerError: a text is none of `CALL:BYTES`.
    """
    found = {}
    for text in texts[:MOST_LISTED]:
        call, _, size = text.partition(":")
        if not call or not (size.isascii() and size.isdigit()) or len(size) > 18:
            raise errors.CallerError("`seen` is `CALL:BYTES`", hint="leave it out for all that is kept")
        found[call] = int(size)
    return found
