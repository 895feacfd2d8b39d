"""Signatures of webhooks: Ed25519 over id, user, moment and digest of the body, with a key of this server's own."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import secrets
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from atoll import errors, ownership
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
    path = home / DIRECTORY / FILE
    with ownership.directory(path.parent, make=True) as directory:
        temporary = f".{FILE}-{secrets.token_hex(8)}"
        if FILE not in os.listdir(path.parent):
            with open(directory.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(secrets.token_bytes(KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
            try:  # another process may make one, too: the first name counts
                with contextlib.suppress(FileExistsError):
                    os.link(path.with_name(temporary), path)
            finally:
                os.unlink(path.with_name(temporary))
        with open(directory.open(FILE, os.O_RDONLY), "rb") as file:
            mode, seed = os.fstat(file.fileno()).st_mode, file.read(KEY_BYTES + 1)
    if mode & 0o077:
        raise errors.StateUnusable(f"`{path}` can be read by others", hint=f"run `chmod 600 {path}`")
    if len(seed) != KEY_BYTES:
        raise errors.StateUnusable(f"`{path}` is damaged", hint="restore it from a backup, or remove it for a new key")
    return Signer(seed)
