"""An issuer of identities that lies as it is told, on loopback, with keys of its own."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from joserfc import jws
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

CLIENT = "atoll"


def signed(claims: dict[str, Any] | bytes, key: Any, header: dict[str, Any]) -> str:
    """Return a token with any header, signed by any key."""
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    registry = jws.JWSRegistry(algorithms=[header["alg"]], strict_check_header=False)
    return jws.serialize_compact(header, payload, key, registry=registry)


def _short_key() -> RSAKey:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is short
        return RSAKey.generate_key(1024, {"kid": "short"})


@dataclass
class Keys:
    """Keys of an issuer, made once for all tests: RSA is slow to make."""

    rsa: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "r1"}))
    other: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "r2"}))
    short: RSAKey = field(default_factory=_short_key)
    ec: ECKey = field(default_factory=lambda: ECKey.generate_key("P-256", {"kid": "e1"}))
    ed: OKPKey = field(default_factory=lambda: OKPKey.generate_key("Ed25519", {"kid": "o1"}))
    octets: OctKey = field(default_factory=lambda: OctKey.generate_key(256, {"kid": "s1"}))

    def published(self) -> list[dict[str, Any]]:
        """Return the keys that the issuer shows; it even shows a secret by mistake."""
        return [dict(key.as_dict(private=False)) for key in (self.rsa, self.short, self.ec, self.ed)] + [
            dict(self.octets.as_dict(private=True))
        ]


@dataclass
class FakeIssuer:
    """What the issuer answers, by path; a value is status and body, a function of the form gives one.

    Args:
        confirmed: the person has confirmed every code.
        subject: of the token.
    """

    keys: Keys
    address: str = ""
    answers: dict[str, Any] = field(default_factory=dict)
    confirmed: bool = False
    subject: str = "ada"
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def claims(self, **more: Any) -> dict[str, Any]:
        """Return the claims of a good token, with others in place of some; None leaves one out."""
        now = int(time.time())
        found = {
            "iss": self.address,
            "aud": CLIENT,
            "sub": self.subject,
            "iat": now,
            "exp": now + 600,
            "email": f"{self.subject}@lab.example",
            "email_verified": True,
            "preferred_username": self.subject,
            **more,
        }
        return {name: value for name, value in found.items() if value is not None}

    def description(self) -> dict[str, Any]:
        """Return the document of discovery."""
        return {
            "issuer": self.address,
            "device_authorization_endpoint": f"{self.address}/device",
            "token_endpoint": f"{self.address}/token",
            "jwks_uri": f"{self.address}/jwks",
        }

    def answer(self, path: str, form: dict[str, str]) -> tuple[int, Any]:
        """Return status and body of an answer."""
        self.asked.append((path, form))
        if path in self.answers:
            found: tuple[int, Any] = self.answers[path]
            return found
        if path == "/.well-known/openid-configuration":
            return 200, self.description()
        if path == "/jwks":
            return 200, {"keys": self.keys.published()}
        if path == "/device":
            page = f"{self.address}/page"
            return 200, {
                "device_code": "device-code",
                "user_code": "ABCD-EFGH",
                "verification_uri": page,
                "expires_in": 300,
                "interval": 1,
            }
        if path == "/token":
            if not self.confirmed:
                return 400, {"error": "authorization_pending"}
            return 200, {"id_token": signed(self.claims(), self.keys.rsa, {"alg": "RS256", "kid": "r1"})}
        return 404, {}


@contextlib.contextmanager
def running(keys: Keys) -> Iterator[FakeIssuer]:
    """Run an issuer on loopback."""
    issuer = FakeIssuer(keys)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.respond({})

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode()
            self.respond({name: values[0] for name, values in parse_qs(data).items()})

        def respond(self, form: dict[str, str]) -> None:
            status, body = issuer.answer(self.path, form)
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", f"{issuer.address}/elsewhere")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = False
        issuer.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield issuer
        finally:
            server.shutdown()
            thread.join()
