"""Logins by an issuer of identities: a real one, forged tokens, issuers that lie, and who gets which user."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from atoll import errors
from atoll.server.accounts import rows
from atoll.server.accounts.accounts import Accounts
from atoll.server.accounts.bodies import NewUser
from atoll.server.accounts.direct import Direct
from atoll.server.login import device, identity, people
from atoll.server.login.device import MOST_OF_ADDRESS, DeviceLogins
from atoll.server.login.issuer import Issuer
from atoll.server.login.options import LoginOptions, is_safe, load

from ..conftest import own_home
from ..waiting import PATIENCE_SECONDS
from . import fake_issuer, real_issuer
from .fake_issuer import FakeIssuer, Keys, signed


@pytest.fixture(scope="module")
def keys() -> Keys:
    return Keys()


@pytest.fixture(scope="module")
def fake_server(keys: Keys) -> Iterator[FakeIssuer]:
    with fake_issuer.running(keys) as issuer:
        yield issuer


@pytest.fixture
def fake(fake_server: FakeIssuer) -> FakeIssuer:
    """An issuer that behaves, until the test tells it otherwise."""
    fake_server.answers, fake_server.asked = {}, []
    fake_server.confirmed, fake_server.subject = False, "ada"
    return fake_server


@pytest.fixture(scope="module")
def real() -> Iterator[str]:
    with real_issuer.running() as address:
        yield address


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def brokered(
    home: Path, options: LoginOptions, scenario: Callable[[DeviceLogins, Clock, Accounts], Awaitable[None]]
) -> None:
    """Run a scenario with the logins of a server, whose clock it moves."""

    async def run() -> None:
        home.chmod(0o700)
        accounts, issuer, clock = Accounts(home), Issuer(options), Clock()
        try:
            await scenario(DeviceLogins(accounts, issuer, clock), clock, accounts)
        finally:
            await issuer.close()
            accounts.close()

    asyncio.run(run())


async def finished(logins: DeviceLogins, clock: Clock, token: str) -> rows.Key:
    """Return the key of a login that was confirmed."""
    clock.now += 30
    found = await logins.poll(token, "127.0.0.1")
    assert not isinstance(found, float)
    return found[0]


# --- a real issuer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("client", "secret"), [("atoll", ""), ("secretive", "a+b/c%=d")])
def test_a_person_of_a_real_issuer_gets_a_key(real: str, client: str, secret: str, tmp_path: Path) -> None:
    """npm's `oidc-provider`: a code is confirmed in the browser, and the same person is the same user again."""
    options = LoginOptions(real, client, secret, domains=("lab.example",), new_users=True, claims=("groups=gpu-users",))

    async def scenario(logins: DeviceLogins, clock: Clock, accounts: Accounts) -> None:
        users = set()
        for _ in range(2):
            token, begun = await logins.begin("127.0.0.1", "laptop")
            assert begun.user_code in begun.complete
            clock.now += 6
            assert await logins.poll(token, "127.0.0.1") == 5.0
            await asyncio.to_thread(real_issuer.confirm, begun.complete, "ada")
            key = await finished(logins, clock, token)
            assert key.expires is not None
            assert (key.alias, key.expires > time.time()) == ("laptop", True)
            users.add(key.user)
            with pytest.raises(errors.NotAuthorized, match="not known"):  # a login makes one key
                await logins.poll(token, "127.0.0.1")
        with accounts.database.reading() as connection:
            (user,) = rows.all_users(connection)
        assert (user.name, user.operator, {user.id}) == ("ada", False, users)

    brokered(tmp_path, options, scenario)


def test_a_person_of_a_real_issuer_may_refuse(real: str, tmp_path: Path) -> None:
    """Who refuses at the issuer gets no key, and the program hears why."""

    async def scenario(logins: DeviceLogins, clock: Clock, _: Accounts) -> None:
        token, begun = await logins.begin("127.0.0.1")
        await asyncio.to_thread(real_issuer.confirm, begun.complete, "ada", refuse=True)
        clock.now += 6
        with pytest.raises(errors.NotAuthorized, match="the issuer says `access_denied`"):
            await logins.poll(token, "127.0.0.1")

    brokered(tmp_path, LoginOptions(real, "atoll", new_users=True), scenario)


# --- forged tokens ----------------------------------------------------------------------------------------------------


def encoded(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def hand_signed(header: dict[str, Any], issuer: FakeIssuer, sign: Callable[[bytes], bytes]) -> str:
    """Return a token of a good issuer's claims that the library would refuse to make."""
    text = f"{encoded(header)}.{encoded(issuer.claims())}"
    return f"{text}.{encoded(sign(text.encode()))}"


def rsa_signature(keys: Keys, data: bytes) -> bytes:
    """Return a good signature."""
    return keys.rsa.private_key.sign(data, padding.PKCS1v15(), hashes.SHA256())  # type: ignore[union-attr]


FORGERIES: dict[str, Callable[[FakeIssuer, Keys], str]] = {
    "no signature": lambda i, k: f"{encoded({'alg': 'none'})}.{encoded(i.claims())}.",
    "no signature in capitals": lambda i, k: f"{encoded({'alg': 'NONE'})}.{encoded(i.claims())}.",
    "no algorithm": lambda i, k: f"{encoded({'kid': 'r1'})}.{encoded(i.claims())}.{encoded(b'x')}",
    "an algorithm that is a list": lambda i, k: f"{encoded({'alg': ['RS256']})}.{encoded(i.claims())}.eA",
    "signature left out": lambda i, k: (
        signed(i.claims(), k.rsa, {"alg": "RS256", "kid": "r1"}).rpartition(".")[0] + "."
    ),
    "another key": lambda i, k: signed(i.claims(), k.other, {"alg": "RS256", "kid": "r1"}),
    "a key that is not published": lambda i, k: signed(i.claims(), k.other, {"alg": "RS256", "kid": "r2"}),
    "a key of its own in the header": lambda i, k: signed(
        i.claims(), k.other, {"alg": "RS256", "kid": "r2", "jwk": k.other.as_dict(private=False)}
    ),
    "the address of a key in the header": lambda i, k: signed(
        i.claims(),
        k.other,
        {"alg": "RS256", "kid": "r1", "jku": f"{i.address}/elsewhere", "x5u": "https://evil.example"},
    ),
    "a path for a key id": lambda i, k: signed(i.claims(), k.other, {"alg": "RS256", "kid": "../../dev/null"}),
    "a statement for a key id": lambda i, k: signed(i.claims(), k.other, {"alg": "RS256", "kid": "r1' OR '1'='1"}),
    "an empty key id": lambda i, k: signed(i.claims(), k.other, {"alg": "RS256", "kid": ""}),
    "the id of a key of another kind": lambda i, k: signed(i.claims(), k.ec, {"alg": "ES256", "kid": "r1"}),
    "the public key as a secret": lambda i, k: hand_signed(
        {"alg": "HS256", "kid": "r1"}, i, lambda data: hmac.digest(k.rsa.as_pem(private=False), data, "sha256")
    ),
    "a secret that is published": lambda i, k: signed(i.claims(), k.octets, {"alg": "HS256", "kid": "s1"}),
    "a short key": lambda i, k: signed(i.claims(), k.short, {"alg": "RS256", "kid": "short"}),
    "an algorithm that is not allowed": lambda i, k: signed(i.claims(), k.rsa, {"alg": "RS512", "kid": "r1"}),
    "an unknown extension": lambda i, k: hand_signed(
        {"alg": "RS256", "kid": "r1", "crit": ["x"], "x": 1}, i, lambda data: rsa_signature(k, data)
    ),
    "other claims under the signature": lambda i, k: re.sub(r"\..*\.", f".{encoded(i.claims(sub='eve'))}.", good(i, k)),
    "another issuer": lambda i, k: good(i, k, iss="https://evil.example"),
    "the issuer with a slash": lambda i, k: good(i, k, iss=i.address + "/"),
    "no issuer": lambda i, k: good(i, k, iss=None),
    "another program": lambda i, k: good(i, k, aud="other"),
    "no audience": lambda i, k: good(i, k, aud=None),
    "a part of an audience": lambda i, k: good(i, k, aud="atoll-other"),
    "an audience that contains the name": lambda i, k: good(i, k, aud={"atoll": 1}),
    "two audiences and no party": lambda i, k: good(i, k, aud=["atoll", "other"]),
    "two audiences for another party": lambda i, k: good(i, k, aud=["atoll", "other"], azp="other"),
    "given to another party": lambda i, k: good(i, k, azp="other"),
    "expired": lambda i, k: good(i, k, exp=int(time.time()) - 61),
    "no end": lambda i, k: good(i, k, exp=None),
    "an end as a text": lambda i, k: good(i, k, exp="99999999999"),
    "an end that is true": lambda i, k: good(i, k, exp=True),
    "an end that is no number": lambda i, k: good(i, k, exp=float("nan")),
    "no beginning": lambda i, k: good(i, k, iat=None),
    "made in the future": lambda i, k: good(i, k, iat=int(time.time()) + 120),
    "made long ago": lambda i, k: good(i, k, iat=int(time.time()) - 4000),
    "not valid yet": lambda i, k: good(i, k, nbf=int(time.time()) + 120),
    "no subject": lambda i, k: good(i, k, sub=None),
    "an empty subject": lambda i, k: good(i, k, sub=""),
    "a subject that is a number": lambda i, k: good(i, k, sub=7),
    "a subject that looks like another": lambda i, k: good(i, k, sub="\u0430da"),
    "a long subject": lambda i, k: good(i, k, sub="a" * 256),
    "a subject of two lines": lambda i, k: good(i, k, sub="ada\neve"),
    "claims that are a list": lambda i, k: signed(b"[]", k.rsa, {"alg": "RS256", "kid": "r1"}),
    "claims that are no JSON": lambda i, k: signed(b"{", k.rsa, {"alg": "RS256", "kid": "r1"}),
    "deep claims": lambda i, k: signed(b"[" * 9000, k.rsa, {"alg": "RS256", "kid": "r1"}),
    "a long token": lambda i, k: good(i, k, filler="x" * 20_000),
    "five parts": lambda i, k: good(i, k) + ".a.b",
    "empty": lambda i, k: "",
    "not ASCII": lambda i, k: "ä.ä.ä",
    "a header that is a list": lambda i, k: f"{encoded([])}.{encoded(i.claims())}.eA",
    "a deep header": lambda i, k: f"{encoded(b'[' * 9000)}.{encoded({})}.eA",
}


def good(issuer: FakeIssuer, keys: Keys, **claims: Any) -> str:
    return signed(issuer.claims(**claims), keys.rsa, {"alg": "RS256", "kid": "r1"})


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_tokens_are_refused(name: str, fake: FakeIssuer, keys: Keys) -> None:
    """No token counts but one that the issuer has just made for this server."""
    options = LoginOptions(fake.address, fake_issuer.CLIENT)
    with pytest.raises(errors.NotAuthorized, match="the issuer's token is refused"):
        identity.check(FORGERIES[name](fake, keys), keys.published(), options)


def test_good_tokens_are_taken(fake: FakeIssuer, keys: Keys) -> None:
    """The forgeries' original is taken, in each allowed kind of signature, with one audience or more."""
    options = LoginOptions(fake.address, fake_issuer.CLIENT)
    for token in (
        good(fake, keys),
        hand_signed({"alg": "RS256", "kid": "r1"}, fake, lambda data: rsa_signature(keys, data)),
        good(fake, keys, aud=["atoll"]),
        good(fake, keys, aud=["other", "atoll"], azp="atoll"),
        good(fake, keys, exp=int(time.time()) - 30),  # clocks differ
        signed(fake.claims(), keys.ec, {"alg": "ES256", "kid": "e1"}),
        signed(fake.claims(), keys.ec, {"alg": "ES256"}),  # the only key of its kind
        signed(fake.claims(), keys.ed, {"alg": "Ed25519", "kid": "o1"}),
        signed(fake.claims(), keys.rsa, {"alg": "PS256", "kid": "r1"}),
    ):
        assert identity.check(token, keys.published(), options)["sub"] == "ada"


def test_keys_for_encryption_sign_nothing(fake: FakeIssuer, keys: Keys) -> None:
    """A published key that is for another use or another algorithm is not taken for signatures."""
    options = LoginOptions(fake.address, fake_issuer.CLIENT)
    for more in ({"use": "enc"}, {"alg": "PS256"}):
        published = [{**keys.rsa.as_dict(private=False), **more}]
        with pytest.raises(errors.NotAuthorized):
            identity.check(good(fake, keys), published, options)


def test_new_keys_of_the_issuer_are_fetched(fake: FakeIssuer, keys: Keys) -> None:
    """A token of a key that is new makes the server ask again; made-up ids make it ask no more than that."""

    async def scenario() -> None:
        issuer = Issuer(LoginOptions(fake.address, fake_issuer.CLIENT))
        try:
            assert (await issuer.claims(good(fake, keys)))["sub"] == "ada"
            fetched, known = issuer._keys
            issuer._keys = (fetched - 40, known)
            fake.answers["/jwks"] = (200, {"keys": [keys.other.as_dict(private=False)]})
            token = signed(fake.claims(), keys.other, {"alg": "RS256", "kid": "r2"})
            assert (await issuer.claims(token))["sub"] == "ada"
            for _ in range(5):
                with pytest.raises(errors.NotAuthorized):
                    await issuer.claims(signed(fake.claims(), keys.rsa, {"alg": "RS256", "kid": "made-up"}))
        finally:
            await issuer.close()

    asyncio.run(scenario())
    assert [path for path, _ in fake.asked].count("/jwks") == 2


# --- issuers that lie or fail -----------------------------------------------------------------------------------------

LIES: dict[str, tuple[str, Callable[[FakeIssuer], tuple[int, Any]]]] = {
    "another issuer's description": (
        "/.well-known/openid-configuration",
        lambda i: (200, {**i.description(), "issuer": "https://evil.example"}),
    ),
    "an endpoint without https": (
        "/.well-known/openid-configuration",
        lambda i: (200, {**i.description(), "device_authorization_endpoint": "http://evil.example/device"}),
    ),
    "an endpoint that is a file": (
        "/.well-known/openid-configuration",
        lambda i: (200, {**i.description(), "device_authorization_endpoint": "file:///etc/passwd"}),
    ),
    "no endpoint": ("/.well-known/openid-configuration", lambda i: (200, {"issuer": i.address})),
    "a redirect": ("/device", lambda i: (307, {})),
    "no JSON": ("/device", lambda i: (200, b"<html>")),
    "a list": ("/device", lambda i: (200, [])),
    "deep JSON": ("/device", lambda i: (200, b"[" * 100_000)),
    "a long answer": ("/device", lambda i: (200, b" " * (300 << 10))),
    "no code": ("/device", lambda i: (200, {"device_code": 7})),
    "a failure": ("/device", lambda i: (500, {"error": "\x1b[2J"})),
    "a page without https": (
        "/device",
        lambda i: (200, {"device_code": "d", "user_code": "u", "verification_uri": "http://evil.example/"}),
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_an_issuer_that_lies_is_named(name: str, fake: FakeIssuer, tmp_path: Path) -> None:
    """An answer that no issuer gives is a named error, and nothing follows it elsewhere."""
    path, answer = LIES[name]
    fake.answers[path] = answer(fake)

    async def scenario(logins: DeviceLogins, _clock: Clock, _accounts: Accounts) -> None:
        with pytest.raises(errors.HostUnreachable):
            await logins.begin("127.0.0.1")

    brokered(tmp_path, LoginOptions(fake.address, "atoll"), scenario)
    assert "/elsewhere" not in [path for path, _ in fake.asked]


def test_polling_keeps_the_issuers_pace(fake: FakeIssuer, tmp_path: Path) -> None:
    """The issuer is asked at its interval however often the program asks; `slow_down` adds five seconds."""

    async def scenario(logins: DeviceLogins, clock: Clock, _accounts: Accounts) -> None:
        token, _ = await logins.begin("127.0.0.1")

        def questions() -> int:
            return [path for path, _ in fake.asked].count("/token")

        for _ in range(10):
            await logins.poll(token, "127.0.0.1")
        assert questions() == 0
        clock.now += 1
        assert await logins.poll(token, "127.0.0.1") == 1.0
        fake.answers["/token"] = (400, {"error": "slow_down"})
        clock.now += 1
        assert await logins.poll(token, "127.0.0.1") == 6.0
        clock.now += 5
        await logins.poll(token, "127.0.0.1")
        assert questions() == 2
        fake.answers["/token"] = (503, {})
        clock.now += 1
        with pytest.raises(errors.HostUnreachable):
            await logins.poll(token, "127.0.0.1")
        del fake.answers["/token"]
        fake.confirmed = True
        assert (await finished(logins, clock, token)).alias == "login"  # a failure of the issuer's ends no login

    brokered(tmp_path, LoginOptions(fake.address, "atoll", new_users=True), scenario)


def test_logins_are_bounded_and_end(fake: FakeIssuer, tmp_path: Path) -> None:
    """One address begins so many logins, others still may, and a login that nobody confirms is forgotten."""

    async def scenario(logins: DeviceLogins, clock: Clock, _accounts: Accounts) -> None:
        token, _ = await logins.begin("203.0.113.5")
        for _ in range(MOST_OF_ADDRESS - 1):
            await logins.begin("203.0.113.5")
        with pytest.raises(errors.NotAuthorized) as caught:
            await logins.begin("203.0.113.5")
        assert caught.value.status == 429
        await logins.begin("203.0.113.6")
        clock.now += 301
        with pytest.raises(errors.NotAuthorized, match="has expired"):
            await logins.poll(token, "203.0.113.5")
        with pytest.raises(errors.NotAuthorized):
            await logins.poll("made-up", "203.0.113.5")

    brokered(tmp_path, LoginOptions(fake.address, "atoll"), scenario)


@pytest.mark.parametrize(
    ("addresses", "most", "other"),
    [
        ("2001:db8:{:x}00::1", 8, "2001:db9::1"),  # a provider's customers, each with a network of its own
        ("2001:db8:0:{:x}00::1", 4, "2001:db8:1::1"),  # a customer with a /48
        ("2001:db8:0:{:x}::1", 2, "2001:db8:0:100::1"),  # one with a /56
        ("198.51.{}.7", 8, "203.0.113.7"),
        ("198.51.100.{}", 4, "198.51.101.1"),
    ],
)
def test_no_owner_of_many_addresses_stops_the_logins_of_others(
    fake: FakeIssuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, addresses: str, most: int, other: str
) -> None:
    """Logins under way, those that are just begun at once included, are bounded for each network around an address."""
    monkeypatch.setattr(device, "MOST_OF_ADDRESS", 2)
    monkeypatch.setattr(device, "MOST_OF_RANGES", (4, 8))

    async def scenario(logins: DeviceLogins, _clock: Clock, _accounts: Accounts) -> None:
        begins = (logins.begin(addresses.format(number)) for number in range(16))
        ended = await asyncio.gather(*begins, return_exceptions=True)
        refused = [one for one in ended if isinstance(one, errors.NotAuthorized)]
        assert len(ended) - len(refused) == most
        assert {one.status for one in refused} == {429}
        await logins.begin(other)

    brokered(tmp_path, LoginOptions(fake.address, "atoll"), scenario)


# --- people -----------------------------------------------------------------------------------------------------------

ADMITTED: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
    ({}, {}, True),
    ({"domains": ("lab.example",)}, {"email": "ada@lab.example", "email_verified": True}, True),
    ({"domains": ("LAB.example",)}, {"email": "ada@Lab.Example", "email_verified": True}, True),
    ({"domains": ("lab.example",)}, {"email": "ada@lab.example"}, False),
    ({"domains": ("lab.example",)}, {"email": "ada@lab.example", "email_verified": "true"}, False),
    ({"domains": ("lab.example",)}, {"email": "ada@evil-lab.example", "email_verified": True}, False),
    ({"domains": ("lab.example",)}, {"email": "ada@lab.example@evil.example", "email_verified": True}, False),
    ({"domains": ("lab.example",)}, {"email": "ada@l\u0430b.example", "email_verified": True}, False),
    ({"domains": ("lab.example",)}, {"email": ["ada@lab.example"], "email_verified": True}, False),
    ({"domains": ("lab.example",)}, {}, False),
    ({"claims": ("groups=gpu",)}, {"groups": ["cpu", "gpu"]}, True),
    ({"claims": ("groups=gpu",)}, {"groups": "gpu"}, True),
    ({"claims": ("groups=gpu",)}, {"groups": "no-gpu"}, False),
    ({"claims": ("groups=gpu",)}, {"groups": ["gpu2"]}, False),
    ({"claims": ("staff=true",)}, {"staff": True}, True),
    ({"claims": ("staff=true", "groups=gpu")}, {"staff": True}, False),
]


@pytest.mark.parametrize(("rules", "claims", "admitted"), ADMITTED)
def test_the_operators_rules_admit(rules: dict[str, Any], claims: dict[str, Any], admitted: bool) -> None:
    """Every rule must hold: a verified address of a domain, and each claim."""
    options = LoginOptions("https://id.example", "atoll", **rules)
    if admitted:
        people.check_admitted(claims, options)
    else:
        with pytest.raises(errors.NotAuthorized) as caught:
            people.check_admitted(claims, options)
        assert caught.value.status == 403


def test_nobody_is_a_user_by_name(tmp_path: Path) -> None:
    """A person with a user's name or address gets another user; one whom the operator has linked is that one."""
    tmp_path.chmod(0o700)
    options = LoginOptions("https://id.example", "atoll", new_users=True)
    with Direct(tmp_path) as direct:
        ada = direct.add_user(NewUser("ada", operator=True))
        bob = direct.add_user(NewUser("bob", issuer=options.issuer, subject="s-bob", key=False))
        assert bob.key is None
        with direct._database.writing() as connection:
            claims = {"sub": "s1", "preferred_username": "Ada", "email": "ada@lab.example"}
            found = people.user_of(connection, claims, options)
            assert (found.name, found.operator) == ("ada-2", False)
            assert found.id != ada.user.id
            assert people.user_of(connection, {"sub": "s1", "preferred_username": "root"}, options) == found
            assert people.user_of(connection, {"sub": "s-bob"}, options).id == bob.user.id
            other = replace(options, issuer="https://other.example", new_users=False)
            with pytest.raises(errors.NotAuthorized, match="no user is the subject `s-bob`"):
                people.user_of(connection, {"sub": "s-bob"}, other)
            assert people.user_of(connection, {"sub": "s2", "preferred_username": "root"}, options).name == "root-2"
            assert people.user_of(connection, {"sub": "s3"}, options).name == "user"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("ada", "ada"),
        ("Ada.Lovelace@lab.example", "ada.lovelace"),
        ("  Ada   Lovelace ", "ada-lovelace"),
        ("7of9", "of9"),
        ("..x..y..", "x-y"),
        ("\u0430\u0434\u0430", ""),
        ("a\u0430a", "a-a"),
        ("../../etc/passwd", "etc-passwd"),
        ("x" * 100, "x" * 32),
        ("", ""),
        (None, ""),
        (["ada"], ""),
    ],
)
def test_names_of_new_users_keep_the_grammar(given: object, name: str) -> None:
    """Texts of an issuer become names of ASCII letters and digits, or none."""
    assert people.name_from(given) == name


# --- options, command line --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('issuer = "http://id.example"\nclient_id = "a"', "must be an address with https"),
        ('issuer = "https://id.example?x=1"\nclient_id = "a"', "must be an address with https"),
        ('issuer = "https://id.example"', "`login.client_id` is needed"),
        ('issuer = "https://id.example"\nclient_id = "a"\nalgorithms = ["none"]', "`none` is not one of"),
        ('issuer = "https://id.example"\nclient_id = "a"\nalgorithms = ["HS256"]', "`HS256` is not one of"),
        ('issuer = "https://id.example"\nclient_id = "a"\nclaims = ["groups"]', "is not NAME=VALUE"),
        ('issuer = "https://id.example"\nclient_id = "a"\nscopes = ["email"]', "must have `openid`"),
        ('isuer = "https://id.example"', "unknown option"),
        ('client_secret = "s"', "others can read it"),
    ],
)
def test_mistakes_of_the_options_are_named(text: str, message: str, tmp_path: Path) -> None:
    """A server with a mistake in `login.toml` says so when it starts."""
    tmp_path.chmod(0o700)
    (tmp_path / "login.toml").write_text(f"[login]\n{text}\n")
    (tmp_path / "login.toml").chmod(0o644)
    with pytest.raises(errors.StateUnusable, match=re.escape(message)):
        load(tmp_path)


def test_addresses_of_an_issuer_need_https() -> None:
    """Loopback alone does without."""
    assert all(map(is_safe, ("https://id.example/x", "http://127.0.0.1:8080", "http://localhost/x")))
    wrong = (
        "http://id.example",
        "ftp://id",
        "https://",
        "https://a@id.example",
        "https://id\n.example",
        "javascript:1",
    )
    assert not any(map(is_safe, wrong))


def test_the_command_line_logs_in_by_the_browser(fake: FakeIssuer, tmp_path: Path) -> None:
    """`atoll auth login` shows page and code, waits for the person, and keeps a key that works."""
    from .process import Server

    with own_home() as home:
        (home.path / "login.toml").write_text(
            f'[login]\nissuer = "{fake.address}"\nclient_id = "atoll"\nnew_users = true\n'
        )
        server = Server(home, None, tls=False)  # type: ignore[arg-type]
        server.start()
        try:
            environment = {name: value for name, value in os.environ.items() if not name.startswith(("ATOLL_", "FAL_"))}
            environment |= {"XDG_CONFIG_HOME": str(tmp_path), "ATOLL_HOME": str(tmp_path)}
            command = [sys.executable, "-c", "from atoll.cli.main import main; main()", "auth"]
            with subprocess.Popen(
                [*command, "login", "--host", server.url], env=environment, stderr=subprocess.PIPE, text=True
            ) as login:
                assert login.stderr is not None
                assert login.stderr.readline() == f"open {fake.address}/page\n"
                assert login.stderr.readline() == "and confirm the code ABCD-EFGH\n"
                fake.confirmed = True
                rest = login.stderr.read()
                assert login.wait(PATIENCE_SECONDS) == 0, rest
            assert f"logged in to {server.url} as ada" in rest
            done = subprocess.run([*command, "whoami"], env=environment, capture_output=True, text=True, check=True)
            assert done.stdout.startswith(f"ada at {server.url} (key ")
            assert "device-code" not in server.log.read_text()
        finally:
            server.end()
            server.process.close()
            home.stop()
