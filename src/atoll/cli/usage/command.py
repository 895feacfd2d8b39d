"""`atoll usage`: calls, time, memory, GPUs and the disk, by function, day and more."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

from atoll import settings as options
from atoll.cli import hosts
from atoll.cli.columns import Column, print_fitted
from atoll.cli.tables import moment_of, print_json, size, wrong_usage
from atoll.cli.terminal import echo, write_output
from atoll.errors import AtollError
from atoll.host.contract import Host
from atoll.host.local import LocalHost
from atoll.model import figures
from atoll.model.figures import Figures, duration

USER = "local"
"""The user of the local host."""


def usage(
    *,
    by: Literal["function", "day", "outcome", "environment", "user"] = "function",
    since: str = "30d",
    json: bool = False,
    html: str = "",
) -> int:
    """Show the use of this machine, or of a server by yourself: calls, failures, time, computing, memory, GPUs, and the disk.

    The figures are those of the records, which are kept for some time (`records.keep_days`). On a terminal plots come
    first.

    Parameters
    ----------
    by: str
        The key of the rows: function, day, outcome, environment or user.
    since: str
        Calls since then: an age such as 12h, 7d or 4w, or a date and time.
    json: bool
        Print an object with `since`, `until`, `by`, `rows`, `days`, `total` and `disk`; seconds and bytes.
    html: str
        Write a page with charts to this file, which needs no network.
    """
    begin = moment_of(since)
    if begin is None:
        return wrong_usage(f"--since is an age such as 12h, 7d or 4w, or a date and time; not `{since}`")
    host = hosts.chosen()
    is_server = hosts.server_of(host) is not None
    rows = hosts.ask("calls.usage", {"since": begin}, host)["usage"]
    user = hosts.whoami(host).get("name", "") if is_server and by == "user" else USER
    now = time.time()
    groups, days = figures.grouped(rows, by, user), figures.daily(rows, dt.date.today().isoformat())  # noqa: DTZ011 - as people count days
    whole, disk = figures.total(rows), disk_bytes(host)
    if html:
        from atoll.cli.usage import page  # for few

        text = page.render(figures.grouped(rows, "function", user), days, whole, disk, since=begin, until=now)
        _write(Path(html), text)
        echo(f"wrote {html}", error=json)
    if json:
        data = {"since": begin, "until": now, "by": by, "rows": [one.to_data() for one in groups]}
        print_json({**data, "days": [one.to_data() for one in days], "total": whole.to_data(), "disk": disk})
    elif not html:
        hosts.tell_server(host)
        _print(by, groups, days, whole, disk)
    return 0


def _print(by: str, groups: list[Figures], days: list[Figures], whole: Figures, disk: dict[str, int]) -> None:
    if not whole.calls:
        echo("no calls in this time")
    else:
        _print_plots(by, groups, days)
        numbers = ("calls", "failed", "time", "cpu", "waited", "peak", "gpu")
        ranks = {"waited": 3, "gpu": 1, "cpu": 2}
        columns = [Column(by, least=8), *(Column(name, right=True, rank=ranks.get(name, 0)) for name in numbers)]
        print_fitted(columns, [_cells(one) for one in (*groups, *([whole] if len(groups) > 1 else []))])
    echo()
    echo("disk  " + "  ".join(f"{name.removesuffix('_bytes')} {size(count)}" for name, count in disk.items()))


def _cells(one: Figures) -> tuple[str, ...]:
    gpu = duration(one.gpu_seconds) if one.gpu_seconds else ""
    failed = f"{one.failed:,}" if one.failed else ""
    times = duration(one.wall_seconds), duration(one.cpu_seconds), duration(one.queue_seconds)
    return (one.key or "none", f"{one.calls:,}", failed, *times, size(one.peak_bytes), gpu)


def _print_plots(by: str, groups: list[Figures], days: list[Figures]) -> None:
    """Print plots on a terminal that is wide enough."""
    from atoll.cli.usage import plots  # late: most output goes without

    width = shutil.get_terminal_size().columns
    if not sys.stdout.isatty() or width < plots.LEAST_COLUMNS:
        return
    can_move, colours = options.terminal()
    shown = [plots.calls_by_day(days, width, colours=colours)] if len(days) > 1 else []
    shown += [plots.time_by(groups, width, colours=colours)] if by != "day" and len(groups) > 1 else []
    for text in filter(None, shown if can_move else []):
        write_output(f"{text}\n\n", raw=False)


def disk_bytes(host: Host) -> dict[str, int]:
    """Return the sizes of that which Atoll keeps: data, snapshots, environments, caches; here also records and calls."""
    from atoll.sdk.data.volume import Volume

    found = dict.fromkeys(("data_bytes", "snapshots_bytes", "environments_bytes", "cache_bytes"), 0)
    environments = host.request("environments.list", {})["environments"]
    found["environments_bytes"] = sum(record["size_bytes"] for record in environments)
    dry = {"cache": True, "environments": False, "dry_run": True}
    found["cache_bytes"] = int(
        host.request("environments.prune", dry).get("freed_bytes", 0)
    )  # the rest is environments'
    with contextlib.suppress(AtollError, OSError), Volume(host) as volume:
        found["data_bytes"] = volume.usage().allocated_bytes
        found["snapshots_bytes"] = sum(one.copied_bytes for one in volume.snapshots())
    if not isinstance(host, LocalHost):
        return found
    for name, directory in (("records", "records_directory"), ("detached", "detached_directory")):
        found[f"{name}_bytes"] = _size_of(getattr(host.settings, directory))
    return found


def _size_of(directory: Path) -> int:
    total = 0
    for above, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(above, name)).st_size
    return total


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=".usage-", delete=False) as file:
        try:
            file.write(text)
            file.flush()
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
