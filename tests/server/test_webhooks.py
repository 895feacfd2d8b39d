"""Webhooks of queued requests: what receivers get, how often, and which targets are refused."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from atoll import errors
from atoll.server.webhooks.targets import check_url, may_be_told, networks

from ..waiting import until
from .queue_app import Front, front


@pytest.fixture(scope="module")
def made() -> Iterator[Front]:
    """A server that may tell the loopback of this machine."""
    with front() as found:
        yield found


def _submitted(made: Front, path: str, hook: str = "/hook") -> str:
    mark = "&" if "?" in path else "?"
    return made.submit(f"{path}{mark}fal_webhook=http%3A%2F%2F127.0.0.1%3A{made.app.port}{hook}")


def test_a_receiver_is_told_with_a_signature_that_it_can_check(made: Front) -> None:
    """The delivery has the answer, and a signature of the key that the server publishes; another body has another one."""
    path = made.serve("told")
    one = _submitted(made, path + "/echo")
    headers, body = until(lambda: made.app.told[one])[0]
    payload: dict[str, object] = {
        "request_id": one,
        "gateway_request_id": one,
        "status": "OK",
        "error": None,
        "payload": {},
    }
    assert json.loads(body) == payload
    status, jwks = made.ask("GET", "/.well-known/jwks.json", user=None)
    (key,) = jwks["keys"]
    assert (status, key["kty"], key["crv"]) == (200, "OKP", "Ed25519")
    public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"] + "="))
    names = ("request-id", "user-id", "timestamp")
    lines = [headers[f"x-fal-webhook-{name}"] for name in names]
    assert lines[0] == one
    signature = bytes.fromhex(headers["x-fal-webhook-signature"])
    public.verify(signature, "\n".join([*lines, hashlib.sha256(body).hexdigest()]).encode())
    with pytest.raises(InvalidSignature):
        public.verify(signature, "\n".join([*lines, hashlib.sha256(body + b" ").hexdigest()]).encode())


def test_a_failure_and_an_answer_that_is_no_json_are_told(made: Front) -> None:
    """The status is `ERROR` with the reason for an error of the function; what is no JSON has no payload."""
    path = made.serve("told-failures")
    one = _submitted(made, path + "/failing?code=422")
    two = _submitted(made, path + "/large?bytes=100")
    told = json.loads(until(lambda: made.app.told[one])[0][1])
    assert (told["status"], told["error"], told["payload"]) == ("ERROR", "Invalid status code: 422", {"detail": "no"})
    told = json.loads(until(lambda: made.app.told[two])[0][1])
    assert (told["status"], told["payload"], told["payload_error"]) == ("OK", None, "the answer is no JSON")


def test_a_delivery_that_is_refused_is_repeated_and_a_redirect_is_not_followed(made: Front) -> None:
    """A receiver that answers with an error is told again, with the same body; one that redirects is not told elsewhere."""
    path = made.serve("told-again")
    redirected = _submitted(made, path + "/echo", "/redirect")
    until(lambda: "the receiver has answered 302" in made.server.log.read_text())
    made.app.refuse_webhooks = 1
    one = _submitted(made, path + "/echo")
    until(lambda: len(made.app.told[one]) > 1)
    told = made.app.told[one]
    assert told[0][1] == told[1][1]
    assert not made.app.told[redirected]


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("127.8.9.10", False),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("172.16.3.4", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("::7f00:1", False),
    ],
)
def test_only_public_addresses_are_told(address: str, told: bool) -> None:
    """Addresses of this machine, of its surroundings and of nobody are refused, in each writing."""
    assert may_be_told(address, []) is told


def test_the_settings_allow_networks() -> None:
    """A network that the settings name may be told, also in IPv6's writing, and no other."""
    allowed = networks(["10.1.0.0/16", "fd00::/8"])
    assert may_be_told("10.1.2.3", allowed)
    assert may_be_told("::ffff:10.1.2.3", allowed)
    assert may_be_told("fd00::5", allowed)
    assert not may_be_told("10.2.0.1", allowed)
    with pytest.raises(errors.StateUnusable):
        networks(["somewhere"])


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://example.com/", "file:///etc/passwd", "gopher://x/", "example.com", "http:///x", "http://", "//x/y"),
        *(
            "http://a:b@example.com/",
            "http://example.com@127.0.0.1/",
            "http://example.com:0/",
            "http://example.com:99999/",
        ),
        *("http://exa mple.com/", "http://example.com/\r\nx: y", "http://example.com\\@x/", "http://ex\u00e4mple.com/"),
        "http://example.com/" + "x" * 2048,
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    """Other schemes, credentials, control characters and lengths without a bound are refused."""
    with pytest.raises(errors.CallerError):
        check_url(url)


def test_a_target_is_refused_at_the_submit_or_at_its_delivery(made: Front) -> None:
    """A URL that is none is refused at once; one whose address is not allowed is never connected to."""
    path = made.serve("refused")
    assert made.ask("POST", f"{path}/echo?fal_webhook=file%3A%2F%2F%2Fetc%2Fpasswd", b"{}")[0] == 400
    url = f"http%3A%2F%2F[::1]%3A{made.app.port}/hook"
    one = made.submit(f"{path}/echo?fal_webhook={url}")
    until(lambda: "its address is not public" in made.server.log.read_text())
    assert not made.app.told[one]
