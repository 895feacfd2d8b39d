"""gRPC of two users: ids of one are nothing to the other, and a client that floods holds up its own connection alone."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from ..conftest import ROOT
from ..server.process import memory
from ..waiting import PATIENCE_SECONDS
from .raw_app import Attacked, attacked, rest

pytest.importorskip("grpc")
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
PING = b"\0\0\x08\6\0\0\0\0\0" + b"x" * 8


@pytest.fixture(scope="module")
def made() -> Iterator[Attacked]:
    """A server with an endpoint and a schedule of Ann's."""
    with attacked() as found:
        found.serve("ann", "hers", "shared")
        yield found


def calls(
    made: Attacked, *asked: tuple[str, str, dict[str, Any]], user: str | None = "bob", more: Any = ()
) -> list[Any]:
    """Return status and answer of each call, with a user's key."""
    identity, _, secret = made.key(user).partition(":") if user else ("", "", "")
    metadata = [("auth-key-id", identity), ("auth-key", secret)] if user else []
    program = subprocess.run(
        [sys.executable, "-m", "tests.security.grpc_program", f"127.0.0.1:{made.server.port}"],
        input=json.dumps([[*one, [*metadata, *more]] for one in asked]),
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        check=False,
    )
    assert program.returncode == 0, program.stderr[-2000:]
    return [json.loads(line) for line in program.stdout.splitlines()]


def test_ids_of_others_are_unknown(made: Attacked) -> None:
    """What names a revision, schedule, activation, runner, key or log of another's is answered as what there is not."""
    ann = made.front.user("ann")
    (alias,) = made.server.ask("GET", "/v1/aliases", headers=ann)[1]["aliases"]
    revision = alias["revision"]
    status, cron = made.server.ask("POST", f"/v1/revisions/{revision}/schedules", b'{"cron": "0 0 1 1 *"}', ann)
    assert status == 201, cron
    key = made.key("ann").partition(":")[0]

    def named(revision: str, cron: str, key: str, alias: str) -> list[tuple[str, str, dict[str, Any]]]:
        return [
            ("SetAlias", "SetAliasRequest", {"alias": "mine", "revision": revision}),
            ("DeleteAlias", "DeleteAliasRequest", {"alias": alias}),
            ("UpdateApplication", "UpdateApplicationRequest", {"application_name": alias, "max_concurrency": 9}),
            ("RegisterCron", "RegisterCronRequest", {"application_id": revision, "cron": "* * * * *"}),
            ("CancelCron", "CronRequest", {"cron_id": cron}),
            ("ListActivations", "CronRequest", {"cron_id": cron}),
            ("GetActivationLogs", "GetActivationLogsRequest", {"cron_id": cron, "activation_id": cron}),
            ("StopRunner", "RunnerRequest", {"runner_id": revision}),
            ("RevokeUserKey", "RevokeUserKeyRequest", {"key_id": key}),
            ("ListApplications", "ListApplicationsRequest", {"application_name": alias}),
            ("ListAliasRunners", "ListAliasRunnersRequest", {"alias": alias}),
            ("GetLogs", "GetLogsRequest", {"filter": {"url": f"/ann/{alias}"}}),
            ("ListCrons", "Empty", {}),
            ("ListUserKeys", "Empty", {}),
        ]

    theirs = calls(made, *named(revision, cron["id"], key, "hers"))
    other = "0" * 8 + revision[8:]
    nobodys = calls(made, *named(other, other, "0" * len(key), "none"))
    for (method, _, _), one, two in zip(named("", "", "", ""), theirs, nobodys, strict=True):
        assert one[0] == two[0], (method, one, two)
        for text in (revision, cron["id"], key):
            assert text not in one[1].replace("`", "") or one[0] != "OK", (method, one)
    assert [one[0] for one in theirs[:9]] == ["NOT_FOUND"] * 9, theirs
    for bad in ("../keys", "x/../../keys/" + key, "..", "%2e%2e", "\r\nx: y", ""):
        (found,) = calls(made, ("CancelCron", "CronRequest", {"cron_id": bad}))
        assert found[0] not in ("OK", "INTERNAL", "UNKNOWN"), (bad, found)
    (shown,) = made.server.ask("GET", "/v1/schedules", headers=ann)[1]["schedules"]
    assert shown["state"] == "active"
    assert made.server.ask("GET", "/v1/aliases", headers=ann)[1]["aliases"] == [alias]


def test_callers_are_known_by_their_keys_alone(made: Attacked) -> None:
    """Without a key, with a bad one, with a long one and with large metadata nothing is answered, and the next call is."""
    ask: tuple[str, str, dict[str, Any]] = ("ListCrons", "Empty", {})
    identity, _, secret = made.key("bob").partition(":")
    assert calls(made, ask, user=None)[0][0] == "UNAUTHENTICATED"
    for pair in (
        (identity, "x" * 40),
        (identity, ""),
        ("x" * 100_000, secret),
        (identity.upper(), secret),
        ("a b", "c"),
    ):
        (found,) = calls(made, ask, user=None, more=[("auth-key-id", pair[0]), ("auth-key", pair[1])])
        assert found[0] in ("UNAUTHENTICATED", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "INTERNAL"), found
        assert secret not in found[1]
    key = json.loads(json.dumps(made.server.ask("POST", "/v1/keys", b'{"scope": "API"}', made.front.user("bob"))[1]))
    (found,) = calls(made, ask, user=None, more=[("auth-key-id", key["id"]), ("auth-key", key["secret"])])
    assert found[0] == "PERMISSION_DENIED"
    assert calls(made, ask)[0][0] == "OK"


def test_floods_of_frames_hold_up_nobody(made: Attacked) -> None:
    """Pings without an end, and bytes that are no frames, take bounded memory; other calls are answered meanwhile."""
    ask: tuple[str, str, dict[str, Any]] = ("ListCrons", "Empty", {})
    assert calls(made, ask)[0][0] == "OK"
    before = memory(made.server.pid)
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            one = stack.enter_context(made.raw(PREFACE + SETTINGS))
            one.settimeout(PATIENCE_SECONDS)
            with contextlib.suppress(OSError):
                for _ in range(20):
                    one.sendall(PING * 1000)
            rest(one)  # `GOAWAY`, and the end
        for junk in (b"\xff" * 4096, b"\0\xff\xff\1\0\0\0\0\1", SETTINGS * 4096):
            stack.enter_context(made.raw(PREFACE + junk))
        assert calls(made, ask)[0][0] == "OK"
        assert memory(made.server.pid) - before < 32 << 20
    with made.raw(PREFACE[:10]) as one:
        one.shutdown(1)
        rest(one)
