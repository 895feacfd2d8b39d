"""Queues that the server's own is compared with: Celery with Redis, and procrastinate with PostgreSQL.

Each has one worker process that takes sixteen tasks at a time, in threads or on one event loop; its task gives back what it
gets. Redis has its default durability, a file now and then; PostgreSQL commits to the disk. procrastinate keeps no
results, so its time ends when the job's state says that it has succeeded.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # PostgreSQL is found as the tests find it

from servers import find_program, free_port
from servers import running as listening
from tests.server.postgresql import programs as find_postgresql

PLACES = 16
READY_SECONDS = 60.0
POLL_SECONDS = 0.001
CELERY = """
from celery import Celery

app = Celery("bench", broker={url!r}, backend={url!r})
app.conf.broker_connection_retry_on_startup = True


@app.task
def echo(body):
    return body
"""
PROCRASTINATE = """
import procrastinate

app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo={url!r}))


@app.task(name="echo")
async def echo(body):
    return body
"""


class Peer(NamedTuple):
    """A queue to compare with.

    Args:
        submit: queues a body, and returns a function that waits for its end.
    """

    name: str
    submit: Callable[[str], Callable[[], object]]


@contextlib.contextmanager
def _worker(place: Path, module: str, text: str, *command: str) -> Iterator[None]:
    (place / f"{module}.py").write_text(text)
    sys.path.insert(0, str(place))
    variables: Mapping[str, str] = {**os.environ, "PYTHONPATH": str(place)}
    log = (place / f"{module}.log").open("wb")
    with (
        log,
        subprocess.Popen(
            [sys.executable, "-m", *command], cwd=place, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        ) as process,
    ):
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            sys.path.remove(str(place))


@contextlib.contextmanager
def celery(place: Path) -> Iterator[Peer | None]:
    """Run Celery's worker and Redis; None where there is no Redis."""
    program = find_program("redis-server")
    if program is None:
        yield None
        return
    port = free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(place), "--logfile", "redis.log"]
    with listening(command, port):
        text = CELERY.format(url=f"redis://127.0.0.1:{port}/0")
        options = ["--pool", "threads", "--concurrency", str(PLACES), "--loglevel", "error", "--without-gossip"]
        with _worker(place, "celery_bench", text, "celery", "--app", "celery_bench", "worker", *options):
            module: Any = __import__("celery_bench")

            def submit(body: str) -> Callable[[], object]:
                result = module.echo.delay(body)
                return lambda: result.get(timeout=READY_SECONDS)

            submit("ready")()
            try:
                yield Peer("Celery, Redis", submit)
            finally:
                gc.collect()  # results that are collected after Redis has ended would look for it, one after the other


@contextlib.contextmanager
def _database(place: Path, programs: Path) -> Iterator[str]:
    """Run PostgreSQL on a socket in a directory, as a plain user where root measures."""
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "cwd": "/"}
    directory = place / "postgresql"
    directory.mkdir()
    if os.geteuid() == 0:  # PostgreSQL refuses root
        user = pwd.getpwnam("nobody")
        os.chown(directory, user.pw_uid, user.pw_gid)
        place.chmod(0o755)
        options |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    data = directory / "data"
    made: list[str | Path] = [programs / "initdb", "-D", data, "-U", "atoll", "-A", "trust", "-E", "UTF8", "--locale=C"]
    subprocess.run(made, check=True, capture_output=True, **options)
    command: list[str | Path] = [programs / "postgres", "-D", data, "-k", directory, "-h", ""]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options) as server:
        try:
            deadline = time.monotonic() + READY_SECONDS
            ready: list[str | Path] = [programs / "pg_isready", "-q", "-h", directory, "-U", "atoll"]
            while subprocess.run(ready, check=False).returncode and time.monotonic() < deadline:
                time.sleep(0.05)
            yield f"postgresql://atoll@/postgres?host={directory}"
        finally:
            server.send_signal(signal.SIGINT)  # its fast way to end


@contextlib.contextmanager
def procrastinate(place: Path) -> Iterator[Peer | None]:
    """Run procrastinate's worker and PostgreSQL; None where there is no PostgreSQL."""
    programs = find_postgresql()
    if programs is None:
        yield None
        return
    import procrastinate as library
    import psycopg_pool

    with _database(place, programs) as url:
        app = library.App(connector=library.SyncPsycopgConnector(conninfo=url, max_size=PLACES))
        app.open(psycopg_pool.ConnectionPool(url, min_size=1, max_size=PLACES, open=True))
        try:
            app.schema_manager.apply_schema()
            task = app.configure_task("echo")
            command = ["procrastinate", "--app", "procrastinate_bench.app", "worker", "--concurrency", str(PLACES)]
            with _worker(place, "procrastinate_bench", PROCRASTINATE.format(url=url), *command):

                def submit(body: str) -> Callable[[], object]:
                    job = task.defer(body=body)
                    return lambda: _wait(app, job)

                submit("ready")()
                yield Peer("procrastinate, PostgreSQL", submit)
        finally:
            app.close()


def _wait(app: Any, job: int) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while (state := str(app.job_manager.get_job_status(job).value)) != "succeeded":
        if state == "failed" or time.monotonic() > deadline:
            raise RuntimeError(f"the job is {state}")
        time.sleep(POLL_SECONDS)
