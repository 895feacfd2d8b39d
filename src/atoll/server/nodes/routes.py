"""Routes about nodes: for operators, for machines that join by a token, and for nodes about themselves."""

from __future__ import annotations

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.routing import BaseRoute

from atoll.server import versions
from atoll.server.accounts.routes import administrator_of
from atoll.server.nodes import acts, bodies, live, rows
from atoll.server.nodes.accounts import Nodes
from atoll.server.principal import Principal
from atoll.server.state import principal_of, state_of
from atoll.server.typed import typed


def routes() -> list[BaseRoute]:
    """Return the routes."""
    return [
        typed("/v1/nodes", "GET", list_nodes, answer=bodies.NodeRows),
        typed("/v1/machines", "GET", list_machines, answer=bodies.Machines),
        typed("/v1/nodes/join", "POST", join, body=bodies.Join, answer=bodies.Joined, status=201, public=True),
        typed("/v1/nodes/tokens", "POST", make_token, body=bodies.NewToken, answer=bodies.MadeToken, status=201),
        typed("/v1/nodes/tokens", "DELETE", revoke_tokens, answer=bodies.RevokedTokens),
        typed("/v1/nodes/self", "GET", tell_self, answer=bodies.NodeRow, public=True),
        typed("/v1/nodes/self", "DELETE", leave, answer=bodies.NodeRow, public=True),
        typed("/v1/nodes/{node}/drain", "POST", drain, answer=bodies.NodeRow),
        typed("/v1/nodes/{node}/cordon", "POST", cordon, answer=bodies.NodeRow),
        typed("/v1/nodes/{node}/uncordon", "POST", uncordon, answer=bodies.NodeRow),
        typed("/v1/nodes/{node}", "DELETE", remove, answer=bodies.NodeRow),
    ]


def nodes_of(request: Request) -> Nodes:
    """Return the nodes of the server that answers a request."""
    found: Nodes = state_of(request).parts["nodes"]
    return found


def _address(request: Request) -> str:
    return request.client.host if request.client is not None else ""


async def list_nodes(request: Request) -> bodies.NodeRows:
    """List all nodes, with what is free and what runs there; for operators."""
    await administrator_of(request)
    nodes = nodes_of(request)
    await nodes.tell()
    return bodies.NodeRows(await live.rows_of(state_of(request), nodes.known()))


async def list_machines(request: Request) -> bodies.Machines:
    """List the machines that run functions, with what is free of each; for every user."""
    await principal_of(request)
    found = await live.rows_of(state_of(request), nodes_of(request).known())
    return bodies.Machines([bodies.machine(row) for row in found])


async def join(request: Request, asked: bodies.Join) -> bodies.Joined:
    """Join as a node by a token; the secret of its credentials is shown this once."""
    versions.node_agreed(request.headers.get(versions.NODE_HEADER, ""))
    joined = await nodes_of(request).join(
        asked.token,
        asked.name,
        facts=asked.facts,
        labels=asked.labels,
        replace=asked.replace,
        address=_address(request),
    )
    node = joined.node
    return bodies.Joined(node.id, joined.secret, node.name, dict(node.labels))


async def make_token(request: Request, asked: bodies.NewToken) -> bodies.MadeToken:
    """Make a token by which machines join, shown this once; for operators."""
    principal, nodes = await administrator_of(request), nodes_of(request)
    return await nodes.change(lambda connection: acts.made_token(connection, nodes.pepper, principal, asked))


async def revoke_tokens(request: Request) -> bodies.RevokedTokens:
    """Revoke all tokens by which machines could still join; for operators."""
    principal = await administrator_of(request)
    return await nodes_of(request).change(lambda connection: acts.revoked_tokens(connection, principal))


async def tell_self(request: Request) -> bodies.NodeRow:
    """Tell a node its own row; with its credentials, `Authorization: Node ID:SECRET`."""
    node = await nodes_of(request).authenticate(request.headers, _address(request))
    (row,) = await live.rows_of(state_of(request), [node])
    return row


async def leave(request: Request) -> bodies.NodeRow:
    """Remove the node that asks, with its credentials; its links end at once."""
    nodes = nodes_of(request)
    node = await nodes.authenticate(request.headers, _address(request))
    actor = Principal(node.id, f"node {node.name}"[:64])
    return await nodes.change(lambda connection: acts.changed(connection, actor, node.id, rows.REMOVED, "node.leave"))


async def drain(request: Request) -> bodies.NodeRow:
    """Give a node no new calls, so that it can go when its calls are over; for operators."""
    return await _change(request, rows.DRAINING, "node.drain")


async def cordon(request: Request) -> bodies.NodeRow:
    """Give a node no new calls; for operators."""
    return await _change(request, rows.CORDONED, "node.cordon")


async def uncordon(request: Request) -> bodies.NodeRow:
    """Give a node calls again; for operators."""
    return await _change(request, rows.ACTIVE, "node.uncordon")


async def remove(request: Request) -> bodies.NodeRow:
    """Remove a node: its credentials are worth nothing at once, and its calls end; for operators."""
    return await _change(request, rows.REMOVED, "node.remove")


async def _change(request: Request, state: str, act: str) -> bodies.NodeRow:
    principal, name = await administrator_of(request), request.path_params["node"]

    def change(connection: Connection) -> bodies.NodeRow:
        return acts.changed(connection, principal, name, state, act)

    return await nodes_of(request).change(change)
