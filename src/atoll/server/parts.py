"""The parts of the server, in the order in which they are installed.

A part has a function `install(state)`, called once before the server listens, on the main thread without an event loop.
It

- appends its routes to `state.routes`; the first fitting route answers,
- puts objects that other parts use into `state.parts`, by name,
- appends to `state.lifespan` a function that returns an asynchronous context manager: open while the server serves,
  entered in order before the first request, left in reverse after the last one; work in the background lives there
  (`process.background.in_background`),
- sets `state.body_bytes["/v1/files/"]`, say, where bodies may be larger than 1 MiB,
- may replace `state.authenticate`, as accounts do.

Handlers find their user by `principal_of(request)` and raise `AtollError`s, which `app` answers as JSON. Blocking work
that a user can make long has threads of its kind (`atoll.work_threads`). Who serves a user beyond one request adds a
`Holder` to `state.parts["accounts"].holders`, and is told when the key is revoked.
"""

from __future__ import annotations

from collections.abc import Callable

from atoll.server import description, files, health, line, metrics, requests
from atoll.server.accounts import part as accounts
from atoll.server.admin import part as admin
from atoll.server.apps import part as apps
from atoll.server.cluster import part as cluster
from atoll.server.controller import part as controller
from atoll.server.endpoints import part as endpoints
from atoll.server.fleets import part as fleets
from atoll.server.login import part as login
from atoll.server.machines import part as machines
from atoll.server.nodes import part as nodes
from atoll.server.outputs import part as outputs
from atoll.server.pages import install as pages
from atoll.server.published import part as published
from atoll.server.queue import part as queue
from atoll.server.queues import part as queues
from atoll.server.schedules import part as schedules
from atoll.server.state import ServerState
from atoll.server.usage import part as usage
from atoll.server.webhooks import part as webhooks

PARTS: tuple[Callable[[ServerState], None], ...] = (
    accounts.install,
    nodes.install,
    description.install,
    login.install,
    usage.install,
    admin.install,
    health.install,
    metrics.install,
    line.install,
    cluster.install,
    machines.install,
    requests.install,
    files.install,
    pages.install,
    fleets.install,
    schedules.install,
    apps.install,
    webhooks.install,
    controller.install,
    published.install,
    outputs.install,
    queues.install,
    endpoints.install,
    queue.install,
)
