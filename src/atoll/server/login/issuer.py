"""An issuer of identities over HTTP: its description, its keys, and the two requests of the device flow (RFC 8628)."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Mapping
from typing import Any

import httpx

from atoll import errors
from atoll.server.login import identity
from atoll.server.login.options import LoginOptions, is_safe
from atoll.terminal_text import cell

SECONDS = 10.0
MOST_ANSWER_BYTES = 256 << 10
DESCRIPTION_SECONDS = 3600.0
KEYS_SECONDS = 600.0
REFRESH_SECONDS = 30.0
"""The least between two questions for keys: tokens with made-up key ids cause no more."""
GRANT = "urn:ietf:params:oauth:grant-type:device_code"


class Issuer:
    """The operator's issuer; for one event loop."""

    def __init__(self, options: LoginOptions) -> None:
        self.options = options
        self._client: httpx.AsyncClient | None = None
        self._description: tuple[float, dict[str, Any]] = (0.0, {})
        self._keys: tuple[float, list[dict[str, Any]]] = (0.0, [])
        self._lock = asyncio.Lock()

    async def close(self) -> None:
        """Close connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def begin(self) -> dict[str, Any]:
        """Begin a device flow; return the issuer's answer.

        Raises:
            HostUnreachable: the issuer does not answer as one does.
        """
        endpoint = await self._endpoint("device_authorization_endpoint")
        status, found = await self._post(endpoint, {"scope": " ".join(self.options.scopes)})
        texts = ("device_code", "user_code", "verification_uri")
        if status != 200 or not all(isinstance(found.get(name), str) for name in texts):
            raise self._strange(f"it answers {status} {cell(str(found.get('error', '')), 60)} to the begin of a login")
        return found

    async def poll(self, device_code: str) -> tuple[str, str]:
        """Ask how a device flow stands; return an error's name of RFC 8628, or empty, and the ID token."""
        endpoint = await self._endpoint("token_endpoint")
        status, found = await self._post(endpoint, {"grant_type": GRANT, "device_code": device_code})
        if status == 200 and isinstance(found.get("id_token"), str):
            return "", found["id_token"]
        error = found.get("error")
        if status in (400, 401, 403) and isinstance(error, str):
            return cell(error, 60), ""
        raise self._strange(f"it answers {status} to the question how a login stands")

    async def claims(self, token: str) -> dict[str, Any]:
        """Return the claims of a token; see `identity.check`. Keys that the token names and that are new are fetched."""
        try:
            return identity.check(token, await self._key_set(KEYS_SECONDS), self.options)
        except errors.NotAuthorized as error:
            if not identity.names_unknown_key(error):
                raise
            return identity.check(token, await self._key_set(REFRESH_SECONDS), self.options)

    async def _key_set(self, age_seconds: float) -> list[dict[str, Any]]:
        async with self._lock:
            fetched, keys = self._keys
            if keys and time.monotonic() - fetched < age_seconds:
                return keys
            found = (await self._get(await self._endpoint("jwks_uri"))).get("keys")
            if not isinstance(found, list):
                raise self._strange("it has no keys")
            keys = [key for key in found if isinstance(key, dict)]
            self._keys = (time.monotonic(), keys)
            return keys

    async def _endpoint(self, name: str) -> str:
        fetched, description = self._description
        if not description or time.monotonic() - fetched > DESCRIPTION_SECONDS:
            address = f"{self.options.issuer.rstrip('/')}/.well-known/openid-configuration"
            description = await self._get(address)
            if description.get("issuer") != self.options.issuer:
                raise self._strange("it describes itself as another one")
            self._description = (time.monotonic(), description)
        found = description.get(name)
        if not isinstance(found, str) or not is_safe(found):
            raise self._strange(f"it has no `{name}`")
        return found

    async def _get(self, address: str) -> dict[str, Any]:
        status, found = await self._ask("GET", address, None)
        if status != 200:
            raise self._strange(f"it answers {status} for {cell(address, 200)}")
        return found

    async def _post(self, address: str, form: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        options = self.options
        if not options.client_secret:
            return await self._ask("POST", address, {**form, "client_id": options.client_id})
        methods = self._description[1].get("token_endpoint_auth_methods_supported")
        if isinstance(methods, list) and "client_secret_basic" not in methods:
            secret = {"client_id": options.client_id, "client_secret": options.client_secret}
            return await self._ask("POST", address, {**form, **secret})
        return await self._ask("POST", address, {**form, "client_id": options.client_id}, basic=True)

    async def _ask(
        self, method: str, address: str, form: Mapping[str, str] | None, *, basic: bool = False
    ) -> tuple[int, dict[str, Any]]:
        """Return status and JSON of an answer; no redirect is followed, since the form may hold a secret."""
        client = self._opened()
        pair = (self.options.client_id, self.options.client_secret)
        auth = httpx.BasicAuth(*(_form_quoted(part) for part in pair)) if basic else None
        try:
            async with (
                asyncio.timeout(2 * SECONDS),
                client.stream(method, address, data=form, auth=auth, headers={"Accept": "application/json"}) as answer,
            ):
                data = bytearray()
                async for part in answer.aiter_bytes():
                    data += part
                    if len(data) > MOST_ANSWER_BYTES:
                        raise self._strange("its answer is too long")
                found = json.loads(data.decode("utf-8")) if data else {}
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
            raise self._strange(f"it does not answer: {cell(str(error) or type(error).__name__, 200)}") from error
        except (ValueError, RecursionError) as error:
            raise self._strange(f"it answers {answer.status_code} with something that is no JSON") from error
        if not isinstance(found, dict):
            raise self._strange("its answer is no object")
        return answer.status_code, found

    def _opened(self) -> httpx.AsyncClient:
        if self._client is None:
            try:
                context = ssl.create_default_context(cafile=self.options.ca_file or None)
            except OSError as error:
                raise self._strange(f"cannot read `login.ca_file`: {error.strerror or error}") from error
            self._client = httpx.AsyncClient(
                verify=context,
                timeout=SECONDS,
                follow_redirects=False,
                trust_env=False,
                proxy=self.options.proxy or None,
            )
        return self._client

    def _strange(self, reason: str) -> errors.HostUnreachable:
        return errors.HostUnreachable(
            f"the issuer `{self.options.issuer}` cannot be used: {reason}", hint="try again, or tell the operator"
        )


def _form_quoted(text: str) -> str:
    from urllib.parse import quote_plus  # RFC 6749, 2.3.1: both halves are form-encoded before Basic

    return quote_plus(text)
