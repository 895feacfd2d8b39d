"""`atoll server`: serve functions and `/data` of many users over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import cyclopts

from atoll import errors
from atoll.cli.tables import wrong_usage
from atoll.cli.terminal import echo

LISTEN = "127.0.0.1:8080"


def server(
    *programs: Path,
    listen: str = LISTEN,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    home: Path | None = None,
    trusted_proxy: Annotated[list[str] | None, cyclopts.Parameter(negative="")] = None,
    metrics: str = "",
    database: str = "",
    share_uid_between_users: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    engine: Literal["machines", "ray"] = "machines",
    ray_address: str = "",
    no_local: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    domain: str = "",
    demo: Annotated[bool, cyclopts.Parameter(negative="")] = False,
) -> int:
    """Serve functions and `/data` of many users over HTTP, until interrupted.

    Parameters
    ----------
    programs: Path
        With `--demo`: Python programs to run, instead of waiting for an interruption.
    listen: str
        Address of clients, as HOST:PORT; port 0 for a free one.
    tls_cert: Path
        Certificate chain in PEM; without one it speaks plain HTTP, for a proxy on the same machine.
    tls_key: Path
        The certificate's key in PEM.
    home: Path
        State directory; default: as ATOLL_HOME says.
    trusted_proxy: list[str]
        Address or network of a proxy whose `X-Forwarded-For` counts; may be given again.
    metrics: str
        Address of a listener of its own for `/metrics`, as HOST:PORT.
    database: str
        Address of a PostgreSQL database for users and keys; default: ATOLL_DATABASE_URL, else a file of SQLite in the
        state directory.
    share_uid_between_users: bool
        Serve several users although a plain user runs the server: their functions share this user's host uid.
    engine: str
        Who says which machines there are: `machines` for all that join by a token of `atoll nodes token`, `ray` for those
        of a Ray cluster.
    ray_address: str
        With `--engine ray`: address of the cluster's head, as HOST:PORT; default: the cluster of this machine's Ray node.
    no_local: bool
        Run no calls on this machine, only on those that have joined.
    domain: str
        Domain of endpoints: each has the name OWNER-ALIAS.gateway.DOMAIN, too; needs a wildcard in DNS and certificate.
    demo: bool
        Serve on loopback with a new state directory and one user; all of it goes with the end.
    """
    if programs and not demo:
        return wrong_usage("programs are for `--demo`")
    given = (listen != LISTEN, tls_cert, tls_key, home, trusted_proxy, metrics, database, share_uid_between_users)
    if demo and (any(given) or engine != "machines" or no_local or domain):
        return wrong_usage("`--demo` chooses its own address and state directory: leave the other options out")
    if ray_address and engine != "ray":
        return wrong_usage("`--ray-address` is for `--engine ray`")
    missing = next((program for program in programs if not program.is_file()), None)
    if missing is not None:
        return wrong_usage(f"there is no file `{missing}`")
    if (tls_cert is None) != (tls_key is None):
        return wrong_usage("--tls-cert and --tls-key belong together")
    try:
        from atoll.cli.server.demo import demo as run_demo
        from atoll.server import main
        from atoll.server.options import ServerOptions, address
    except ImportError as error:
        raise errors.StateUnusable(
            f"a server needs packages that are not installed: {error}", hint="pip install 'atoll[server]'"
        ) from error
    if demo:
        return run_demo([program.absolute() for program in programs])
    options = ServerOptions(
        home=None if home is None else home.absolute(),
        listen=address(listen),
        certificate=tls_cert,
        key=tls_key,
        trusted_proxies=tuple(trusted_proxy or ()),
        metrics=address(metrics) if metrics else None,
        database=database,
        share_uid=share_uid_between_users,
        engine=engine,
        ray_address=ray_address,
        local_node=not no_local,
        domain=domain.lower().strip("."),
    )
    return main.run(options, lambda line: echo(line, flush=True))
