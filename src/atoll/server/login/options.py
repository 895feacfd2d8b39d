"""The operator's options of logins by an issuer: the table `[login]` of `login.toml` in the state directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from atoll import errors, ownership, settings_file

FILE = "login.toml"
MOST_FILE_BYTES = 64 << 10


@dataclass(frozen=True)
class LoginOptions:
    """An issuer, and whom of its people the server takes.

    Args:
        issuer: its address, exactly as its tokens have it in `iss`; empty for no such logins.
        client_id: the name under which the issuer knows this server.
        client_secret: the secret for it; empty for a public client. The file's mode must then be 0600.
        scopes: asked of the issuer.
        domains: domains of verified mail addresses, of which a person needs one; empty for any.
        claims: `NAME=VALUE` that a token must have; a list of values must contain it.
        new_users: whether people without a user get one; else the operator adds them by issuer and subject.
        key_days: days until the key of a login expires; 0 for never.
        ca_file: certificates to trust for the issuer; empty for the system's.
        proxy: address of the HTTP proxy to the issuer; empty for none.
        algorithms: signatures that a token may have.
    """

    issuer: str = ""
    client_id: str = ""
    client_secret: str = ""
    scopes: tuple[str, ...] = ("openid", "profile", "email")
    domains: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    new_users: bool = False
    key_days: float = 30.0
    ca_file: str = ""
    proxy: str = ""
    algorithms: tuple[str, ...] = ("RS256", "ES256", "PS256", "EdDSA", "Ed25519")


KNOWN_ALGORITHMS = {
    "RS256": "RSA",
    "RS384": "RSA",
    "RS512": "RSA",
    "PS256": "RSA",
    "PS384": "RSA",
    "PS512": "RSA",
    "ES256": "EC",
    "ES384": "EC",
    "ES512": "EC",
    "EdDSA": "OKP",
    "Ed25519": "OKP",
}
"""Signatures by a public key, and the kind of key; none by a secret that both ends know, and not `none`."""


def load(home: Path) -> LoginOptions:
    """Return the options of a state directory; those of no issuer where there is no file.

    Raises:
        StateUnusable: the file has a mistake.
        StateUntrusted: another user can change it.
    """
    path = home / FILE
    try:
        data = ownership.read(path, MOST_FILE_BYTES + 1)
        mode = path.stat().st_mode
        if len(data) > MOST_FILE_BYTES:
            raise errors.StateUnusable(f"`{path}` has more than {MOST_FILE_BYTES:,} bytes", hint="mend the file")
        text = data.decode("utf-8")
    except FileNotFoundError:
        return LoginOptions()
    except errors.StateUnusable:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise errors.StateUnusable(f"cannot read `{path}`: {error}", hint="mend or remove the file") from error
    found: LoginOptions = settings_file.parse(path, text, {"login": LoginOptions}).get("login", LoginOptions())
    if found.client_secret and mode & 0o077:
        raise errors.StateUnusable(f"`{path}` holds a secret and others can read it", hint=f"run `chmod 600 {path}`")
    for wrong in _mistakes(found):
        raise errors.StateUnusable(f"`{path}`: {wrong}", hint="mend the file")
    return found


def _mistakes(options: LoginOptions) -> list[str]:
    if not options.issuer:
        return []
    found = []
    if not is_safe(options.issuer) or urlsplit(options.issuer).query or urlsplit(options.issuer).fragment:
        found.append("`login.issuer` must be an address with https")
    if not options.client_id:
        found.append("`login.client_id` is needed")
    if "openid" not in options.scopes:
        found.append("`login.scopes` must have `openid`")
    found += [f"`login.claims`: `{one}` is not NAME=VALUE" for one in options.claims if "=" not in one]
    found += [
        f"`login.algorithms`: `{one}` is not one of {', '.join(KNOWN_ALGORITHMS)}"
        for one in options.algorithms
        if one not in KNOWN_ALGORITHMS
    ]
    if not options.algorithms:
        found.append("`login.algorithms` is empty")
    return found


def is_safe(address: str) -> bool:
    """Return whether an address has https, or is this machine's own."""
    try:
        parts = urlsplit(address)
        host = parts.hostname or ""
    except ValueError:
        return False
    if not address.isascii() or not address.isprintable() or "@" in parts.netloc or not host:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and host in ("127.0.0.1", "::1", "localhost"))
