"""The check of an issuer's token (ID token), as OpenID Connect Core 1.0, 3.1.3.7, asks for.

Theory of operation. Nothing of a token is believed before its signature: its header only chooses among the keys that
were fetched from the issuer itself, by `kid`, among those of the algorithm's kind. Keys, certificates and addresses in
the header (`jwk`, `x5c`, `jku`, `x5u`) are not looked at. Algorithms come from the operator's list, which has none with a
shared secret, so a public key can not be taken for one.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey

from atoll import errors
from atoll.server.login.options import KNOWN_ALGORITHMS, LoginOptions
from atoll.terminal_text import cell

MOST_TOKEN = 16 << 10
LEEWAY_SECONDS = 60.0
"""The most that the clocks of issuer and server may differ."""
MOST_AGE_SECONDS = 3600.0
LEAST_RSA_BITS = 2048
_KINDS: dict[str, type[RSAKey | ECKey | OKPKey]] = {"RSA": RSAKey, "EC": ECKey, "OKP": OKPKey}


def names_unknown_key(error: errors.NotAuthorized) -> bool:
    """Return whether `check` refused a token because no key has its `kid`: the issuer may have new keys."""
    return error.details.get("unknown_key") is True


def check(
    token: str, keys: Sequence[Mapping[str, Any]], options: LoginOptions, now: float | None = None
) -> dict[str, Any]:
    """Return the claims of a token that the issuer has made for this server.

    Args:
        keys: the issuer's, as its JWKS has them.
        now: seconds since the epoch, for tests of the past.

    Raises:
        NotAuthorized: none of the keys can have signed it (`names_unknown_key`); or it is forged, for another, from
            another, or expired.
    """
    header = _header(token)
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in options.algorithms or algorithm not in KNOWN_ALGORITHMS:
        raise _refused(f"its signature `{cell(str(algorithm), 40)}` is not one of those allowed")
    key = _choose(keys, header.get("kid"), algorithm)
    try:
        registry = jws.JWSRegistry(algorithms=[algorithm], strict_check_header=False)
        payload = jws.deserialize_compact(token, key, registry=registry).payload
        claims = json.loads(payload)
    except (JoseError, ValueError, TypeError, RecursionError) as error:
        raise _refused("its signature is wrong") from error
    if not isinstance(claims, dict):
        raise _refused("it has no claims")
    _check_claims(claims, options, time.time() if now is None else now)
    return claims


def _header(token: str) -> dict[str, Any]:
    if len(token) > MOST_TOKEN or not token.isascii() or token.count(".") != 2:
        raise _refused("it has another form")
    text = token.partition(".")[0]
    try:
        header = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except (ValueError, RecursionError) as error:
        raise _refused("it has another form") from error
    if not isinstance(header, dict):
        raise _refused("it has another form")
    return header


def _choose(keys: Sequence[Mapping[str, Any]], kid: object, algorithm: str) -> Key:
    """Return the issuer's key that the token names; without a name, the only one of the algorithm's kind."""
    kind = KNOWN_ALGORITHMS[algorithm]
    fitting = [
        key
        for key in keys
        if key.get("kty") == kind and key.get("use", "sig") == "sig" and key.get("alg", algorithm) == algorithm
    ]
    named = fitting if kid is None else [key for key in fitting if isinstance(kid, str) and key.get("kid") == kid]
    if len(named) != 1:
        raise errors.NotAuthorized(
            "the issuer's token is refused: no key of the issuer is known that can have signed it",
            hint="run `atoll auth login` again",
            unknown_key=True,
        )
    public = {name: value for name, value in named[0].items() if name in _PUBLIC}
    if kind == "RSA" and len(str(public.get("n", ""))) * 6 < LEAST_RSA_BITS:  # base64 has 6 bits in a character
        raise _refused("the issuer's key is too short")
    try:
        return _KINDS[kind].import_key(public)
    except (JoseError, ValueError, TypeError, KeyError) as error:
        raise _refused("the issuer's key is damaged") from error


_PUBLIC = frozenset({"kty", "n", "e", "crv", "x", "y"})


def _check_claims(claims: dict[str, Any], options: LoginOptions, now: float) -> None:
    if claims.get("iss") != options.issuer:
        raise _refused("it is another issuer's")
    audience = claims.get("aud")
    audiences = [audience] if isinstance(audience, str) else audience
    if not isinstance(audiences, list) or options.client_id not in audiences:
        raise _refused("it is for another program")
    authorized = claims.get("azp")
    if authorized != options.client_id and (authorized is not None or len(audiences) > 1):
        raise _refused("it was given to another program")
    expires, issued, begins = (_moment(claims, name) for name in ("exp", "iat", "nbf"))
    if expires is None or expires < now - LEEWAY_SECONDS:
        raise _refused("it has expired")
    if issued is None or not now - MOST_AGE_SECONDS <= issued <= now + LEEWAY_SECONDS:
        raise _refused("it was not made just now; the clocks of issuer and server may differ")
    if begins is not None and begins > now + LEEWAY_SECONDS:
        raise _refused("it is not valid yet")
    subject = claims.get("sub")
    if (
        not isinstance(subject, str)
        or not 0 < len(subject) <= 255
        or not subject.isascii()
        or not subject.isprintable()
    ):
        raise _refused("it has no subject")


def _moment(claims: dict[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1 << 53:
        raise _refused(f"its `{name}` is no moment")
    return float(value)


def _refused(reason: str) -> errors.NotAuthorized:
    return errors.NotAuthorized(
        f"the issuer's token is refused: {reason}", hint="run `atoll auth login` again, or tell the operator"
    )
