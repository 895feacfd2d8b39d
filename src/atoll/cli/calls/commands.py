"""`atoll calls`: calls that are not over, records of those that are, and one of either with all that is known."""

from __future__ import annotations

import time
from typing import Annotated, Any

import cyclopts

from atoll.cli import hosts
from atoll.cli.calls import rows
from atoll.cli.calls.output import echo_message
from atoll.cli.columns import print_fitted
from atoll.cli.tables import date, moment_of, print_json, size, wrong_usage
from atoll.cli.terminal import echo
from atoll.model.records import OUTCOMES

app = cyclopts.App(name="calls", help="List calls, and show one of them.", help_format="plaintext")
app.command("atoll.cli.detached:result", name="result", help="Print or write the result of a detached call.")
app.command("atoll.cli.detached:forget", name="forget", help="Remove a detached call that has ended.")


@app.command(name="list")
def list_(
    *,
    lines: Annotated[int, cyclopts.Parameter(alias="-n")] = 50,
    function: str = "",
    outcome: str = "",
    since: str = "",
    running: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    batches: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    all_: Annotated[bool, cyclopts.Parameter(name="--all", negative="")] = False,
    user: str = "",
    json: bool = False,
) -> int:
    """List calls: first those that run or wait, then those that are over, the newest first.

    Parameters
    ----------
    lines: int
        The largest number of calls that are over.
    function: str
        Only calls of this function.
    outcome: str
        Only calls that ended so: ok, error, exited, killed, out_of_memory, timeout, cancelled, lost, refused.
    since: str
        Only calls since then: an age such as 30min, 2h or 7d, or a date and time.
    running: bool
        Only calls that are not over.
    batches: bool
        Instead of calls the batches of detached calls, one line for each.
    all_: bool
        Calls of all users of a server, with their names; for operators, with a key of the scope ADMIN.
    user: str
        The same of one user, by name or id.
    json: bool
        Print a list of objects; times in seconds since the epoch, sizes in bytes.
    """
    if lines < 1:
        return wrong_usage("-n must be at least 1")
    if outcome and outcome not in OUTCOMES:
        return wrong_usage(f"--outcome is one of {', '.join(OUTCOMES)}; not `{outcome}`")
    filters = {name: value for name, value in (("function", function), ("outcome", outcome)) if value}
    arguments: dict[str, Any] = {"limit": min(lines, 100_000), **filters}
    if since:
        moment = moment_of(since)
        if moment is None:
            return wrong_usage(f"--since is an age such as 30min, 2h or 7d, or a date and time; not `{since}`")
        arguments["since"] = moment
    if batches:
        if running or outcome or all_ or user:
            return wrong_usage("--batches goes without --running, --outcome, --all and --user")
        from atoll.cli.batches import print_batches  # for few calls

        print_batches(min(lines, 10_000), function, arguments.get("since", 0.0), json=json)
        return 0
    if running and outcome:
        return wrong_usage("--outcome is of calls that are over, --running of those that are not")
    names: dict[str, str] = {}
    if user or all_:
        from atoll.cli.calls.users import names_of_users, user_named  # for administrators

        names = names_of_users(hosts.chosen())
        arguments |= {"user": user_named(names, user)} if user else {"all": True}
    live = [] if outcome else unfinished(function=function, since=arguments.get("since", 0.0), everybody=bool(names))
    if "user" in arguments:
        live = [row for row in live if row["user"] == arguments["user"]]
    over = [] if running else hosts.ask("calls.list", arguments)["calls"]
    if names:
        live, over = (
            [{**row, "user_name": names.get(row["user"], row["user"])} for row in part] for part in (live, over)
        )
    if json:
        print_json([*map(rows.as_record, live), *map(rows.ended_as_row, over)])
        return 0
    hosts.tell_server()
    if not live and not over:
        echo("no call runs or waits" if running else "no such calls" if len(arguments) > 1 else "no calls yet")
    elif names:
        print_fitted(*rows.of_users(rows.COLUMNS if over else rows.UNFINISHED, [*live, *over], time.time()))
    else:
        print_fitted(rows.COLUMNS if over else rows.UNFINISHED, rows.cells([*live, *over], time.time()))
    return 0


def unfinished(*, function: str = "", since: float = 0.0, everybody: bool = True) -> list[dict[str, Any]]:
    """Return the rows of the calls that are not over; starts no daemon.

    Args:
        everybody: also those of other users, where one may see them.
    """
    found = hosts.ask_running("calls.running", {"all": everybody})
    calls: list[dict[str, Any]] = found["calls"] if found is not None else []
    return [one for one in calls if function in {"", one["function"]} and one["queued_at"] >= since]


@app.command
def show(call: str, /, *, json: bool = False) -> int:
    """Show one call: its worker, its use of the machine, its outcome.

    Parameters
    ----------
    call: str
        The call's id, or its beginning.
    json: bool
        Print an object with `calls`, the attempts, and `children`, the calls that its function made; of a call that is
        not over instead with `unfinished`, its row.
    """
    if not call:
        return wrong_usage("the call's id, or its beginning, is missing")
    found = hosts.ask("calls.show", {"call": call})
    if json:
        print_json(found)
        return 0
    for row in found.get("unfinished", ()):
        _print_unfinished(row)
    for record in found["calls"]:
        _print_record(record)
    if found["children"]:
        echo("calls made by it")
        for child in found["children"]:
            echo(f"  {child['call']}  {child['function']}  {child['outcome']}")
    return 0


def _print_unfinished(row: dict[str, Any]) -> None:
    echo(f"call         {row['call']}")
    echo(f"function     {row['function']}")
    if row["parent"]:
        echo(f"made by      {row['parent']}")
    place = f" ({row['position']} before it)" if row["position"] > 0 else ""
    echo(f"state        {row['state']}{place} for {rows.duration(max(time.time() - row['since'], 0.0))}")
    if row["detail"]:
        echo(f"             {row['detail']}")
    echo(f"made         {date(row['queued_at'])}")
    if machine := rows.of_machine(row):
        echo(f"type         {machine}")
    if row["state"] == "running":
        echo(f"waited       {rows.duration(max(row['since'] - row['queued_at'], 0.0))}")
        echo(f"CPU          {rows.duration(row['cpu_seconds'])}")
        echo(f"memory       {size(row['memory_bytes'])}, peak {size(row['peak_bytes'])}")
        echo(f"worker       {row['worker']} in {row['sandbox']}")
        echo(f"environment  {row['environment']}")
        echo(f"printed      {size(row['printed_bytes'])}; `atoll logs -f {row['call'][: rows.SHORT_ID]}` follows it")
    echo(f"user         {row['user']}")


def _print_record(record: dict[str, Any]) -> None:
    echo(f"call         {record['call']}")
    echo(f"function     {record['function']}")
    if record["parent"]:
        echo(f"made by      {record['parent']}")
    echo(f"outcome      {record['outcome']}{' (' + record['error'] + ')' if record['error'] else ''}")
    echo(f"made         {date(record['queued_at'])}")
    if record["started_at"]:
        echo(f"waited       {record['queue_seconds']:.3f} s")
        echo(f"ran          {record['wall_seconds']:.3f} s")
        echo(f"CPU          {record['cpu_seconds']:.3f} s")
        echo(f"peak memory  {size(record['peak_bytes'])}")
        echo(f"in, out      {size(record['bytes_in'])}, {size(record['bytes_out'])}")
        echo(f"worker       {record['worker']} in {record['sandbox']}")
    echo(f"environment  {record['environment']}")
    echo(f"user         {record['user']}")
    if record["message"]:
        echo_message(f"  {record['message']}")
