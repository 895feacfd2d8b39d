"""The login in the browser: the server's issuer of identities shows a code, the person confirms it there."""

from __future__ import annotations

import time
from typing import Any

from atoll import errors
from atoll.cli.accounts.client import ask
from atoll.cli.terminal import echo
from atoll.credentials import Credentials

MOST_SECONDS = 3600.0
LEAST_INTERVAL, MOST_INTERVAL = 1.0, 60.0


def log_in(server: Credentials, alias: str) -> Credentials | None:
    """Return a key that the server's issuer has vouched for; None where the server has no issuer.

    Raises:
        NotAuthorized: the person or the server refused, or too much time went by.
    """
    if not ask(server, "GET", "/v1/auth", with_key=False).get("device"):
        return None
    begun = ask(server, "POST", "/v1/auth/device", {"alias": alias}, with_key=False)
    address = str(begun["verification_uri_complete"] or begun["verification_uri"])
    echo(f"open {address}", error=True)
    echo(f"and confirm the code {begun['user_code']}", error=True, flush=True)
    interval = _interval(begun)
    deadline = time.monotonic() + min(MOST_SECONDS, float(begun["expires_in"]))
    while time.monotonic() < deadline:
        time.sleep(interval)
        answer = ask(server, "POST", "/v1/auth/device/poll", {"device": begun["device"]}, with_key=False)
        if answer.get("key"):
            return Credentials(server.url, answer["key"]["id"], answer["key"]["secret"], server.ca_file)
        interval = _interval(answer)
    raise errors.NotAuthorized("the code was not confirmed in time", hint="run `atoll auth login` again")


def _interval(answer: dict[str, Any]) -> float:
    return min(MOST_INTERVAL, max(LEAST_INTERVAL, float(answer.get("interval", 5))))
