"""Signatures of webhooks: Ed25519 over id, user, moment and digest of the body, with a key of this server's own."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from atoll.server.accounts import secret_file
from atoll.server.database.database import DIRECTORY

FILE = "webhooks-key"
KEY_BYTES = 32


class Signer:
    """Signs deliveries.

    Args:
        seed: the private key; it appears in no representation.
    """

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """Return the public key as a JSON Web Key Set (RFC 8037)."""
        public = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        text = base64.urlsafe_b64encode(public).rstrip(b"=").decode()
        key = {"kty": "OKP", "crv": "Ed25519", "x": text, "use": "sig", "alg": "EdDSA"}
        return {"keys": [{**key, "kid": hashlib.sha256(public).hexdigest()[:16]}]}

    def headers(self, request: str, user: str, moment: int, body: bytes) -> list[tuple[str, str]]:
        """Return the headers of a delivery.

        Args:
            moment: now, in seconds since the epoch: a receiver refuses what is older than five minutes.
        """
        text = f"{request}\n{user}\n{moment}\n{hashlib.sha256(body).hexdigest()}"
        return [
            ("x-fal-webhook-request-id", request),
            ("x-fal-webhook-user-id", user),
            ("x-fal-webhook-timestamp", str(moment)),
            ("x-fal-webhook-signature", self._key.sign(text.encode()).hex()),
        ]


def read_signer(home: Path) -> Signer:
    """Return the signer of a state directory; its key is made once.

    Raises:
        StateUntrusted: another user can change the key.
        StateUnusable: others can read it, or it is damaged.
    """
    lost = "restore it from a backup, or remove it for a new key"
    return Signer(secret_file.read(home / DIRECTORY / FILE, KEY_BYTES, lost))
