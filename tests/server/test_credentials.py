"""Servers and keys of a user: order of the sources, the file of logins, addresses."""

from __future__ import annotations

import json
import os
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from atoll import credentials, errors
from atoll.credentials import Credentials

LAB, OTHER = "https://lab.example", "https://other.example:8443"
VARIABLES = ("HOST", "KEY_ID", "KEY_SECRET")


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the test a directory for options, and no variable of the caller's."""
    for name in (*(f"{who}_{name}" for who in ("ATOLL", "FAL") for name in VARIABLES), "FAL_PORT", "ATOLL_CA_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("APPDATA", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


ATOLL = {"ATOLL_HOST": "https://a.example", "ATOLL_KEY_ID": "ai", "ATOLL_KEY_SECRET": "as"}
FAL = {"FAL_HOST": "f.example", "FAL_KEY_ID": "fi", "FAL_KEY_SECRET": "fs"}
LOGIN = Credentials(LAB, "li", "ls", "/ca.pem")

SOURCES: list[tuple[str, dict[str, str], dict[str, str], bool, tuple[str, str, str, str] | None]] = [
    ("nothing", {}, {}, False, None),
    ("a key without a server", {}, {"ATOLL_KEY_ID": "ai", "ATOLL_KEY_SECRET": "as"}, False, None),
    ("the file alone", {}, {}, True, (LAB, "li", "ls", "/ca.pem")),
    ("FAL before the file", {}, FAL, True, ("https://f.example", "fi", "fs", "")),
    ("ATOLL before FAL", {}, {**FAL, **ATOLL}, True, ("https://a.example", "ai", "as", "")),
    (
        "arguments first",
        {"url": OTHER, "key_id": "gi", "key_secret": "gs", "ca_file": "/own"},
        {**FAL, **ATOLL},
        True,
        (OTHER, "gi", "gs", "/own"),
    ),
    ("an address with the environment's key", {"url": OTHER}, ATOLL, True, (OTHER, "ai", "as", "")),
    ("an address with its login", {"url": "LAB.example:443/"}, {}, True, (LAB, "li", "ls", "/ca.pem")),
    (
        "a key at the file's address",
        {},
        {"FAL_KEY_ID": "fi", "FAL_KEY_SECRET": "fs"},
        True,
        (LAB, "fi", "fs", "/ca.pem"),
    ),
    ("FAL's port", {}, {**FAL, "FAL_PORT": "8443"}, False, ("https://f.example:8443", "fi", "fs", "")),
    ("certificates by variable", {}, {**ATOLL, "ATOLL_CA_FILE": "/v"}, False, ("https://a.example", "ai", "as", "/v")),
]


@pytest.mark.parametrize(
    ("arguments", "variables", "login", "expected"), [row[1:] for row in SOURCES], ids=[row[0] for row in SOURCES]
)
def test_sources_have_an_order(
    arguments: dict[str, str],
    variables: dict[str, str],
    login: bool,
    expected: tuple[str, str, str, str] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An argument comes before ATOLL's variables, these before FAL's, and the file of logins last."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if login:
        credentials.store(LOGIN)
    assert credentials.find(**arguments) == (Credentials(*expected) if expected else None)


def test_a_stored_key_stays_at_its_address() -> None:
    """A key of one server is never given for another one."""
    credentials.store(LOGIN)
    with pytest.raises(errors.NotAuthorized, match=r"no key for `https://other\.example:8443`") as caught:
        credentials.find(OTHER)
    assert caught.value.hint == "run `atoll auth login --host https://other.example:8443`"
    with pytest.raises(errors.NotAuthorized):
        credentials.find("http://lab.example")


@pytest.mark.parametrize(
    "variables",
    [
        {"ATOLL_KEY_ID": "ai", "FAL_KEY_SECRET": "fs"},
        {"ATOLL_HOST": "https://lab.example", "ATOLL_KEY_ID": "", "ATOLL_KEY_SECRET": ""},
        {"ATOLL_KEY_SECRET": "as"},
        {"FAL_KEY_ID": "fi"},
        {"ATOLL_KEY_ID": "a:b", "ATOLL_KEY_SECRET": "s"},
        {"ATOLL_KEY_ID": "a", "ATOLL_KEY_SECRET": "s\r\nX: 1"},
        {"ATOLL_KEY_ID": "ä", "ATOLL_KEY_SECRET": "s"},
    ],
)
def test_half_keys_and_keys_that_no_server_makes_are_refused(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Halves of two keys are not joined, and no key can add a line to a request's head."""
    credentials.store(LOGIN)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(errors.NotAuthorized):
        credentials.find()


def test_logins_are_kept_by_address_and_forgotten() -> None:
    """A second login leaves the first; the last one is the default, and `forget` falls back to another."""
    credentials.store(LOGIN)
    credentials.store(Credentials(OTHER, "oi", "os"))
    assert [one.url for one in credentials.logins()] == [OTHER, LAB]
    assert credentials.find() == Credentials(OTHER, "oi", "os")
    assert credentials.find(LAB) == LOGIN
    credentials.store(Credentials("https://third.example", "ti", "ts"), default=False)
    assert credentials.forget() == Credentials(OTHER, "oi", "os")
    assert credentials.find() == LOGIN
    assert credentials.forget(OTHER) is None
    assert credentials.forget(LAB) == LOGIN
    assert credentials.forget() == Credentials("https://third.example", "ti", "ts")
    assert credentials.forget() is None
    assert credentials.find() is None


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
def test_the_file_is_private_from_its_first_byte(own_directory: Path) -> None:
    """The file has mode 0600 with any umask, and nothing of it is left elsewhere."""
    before = os.umask(0)
    try:
        path = credentials.store(LOGIN)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
def test_a_file_that_others_can_read_is_refused_with_a_hint(mode: int) -> None:
    """No key is taken from such a file, and none is written to it."""
    path = credentials.store(LOGIN)
    path.chmod(mode)
    with pytest.raises(errors.StateUntrusted, match="other users can read it") as caught:
        credentials.find()
    assert "chmod 600" in caught.value.hint
    with pytest.raises(errors.StateUntrusted):
        credentials.store(LOGIN)
    path.chmod(0o600)
    assert credentials.find() == LOGIN


@pytest.mark.skipif(sys.platform == "win32", reason="no fifos")
def test_a_fifo_in_the_place_of_the_file_holds_nobody() -> None:
    """A path that is no file is refused at once."""
    path = credentials.path()
    path.parent.mkdir(parents=True)
    os.mkfifo(path, 0o600)
    with pytest.raises(errors.StateUntrusted, match="no ordinary file"):
        credentials.find()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"servers": []}',
        '{"servers": {"https://a": {}}}',
        "[" * 5000,
        '{"servers": {"https://a": {"key_id": "a:b", "key_secret": "s"}}}',
        " " * (credentials.MOST_FILE_BYTES + 1),
    ],
)
def test_a_damaged_file_is_named(text: str) -> None:
    """A file that is no list of logins is refused by name, and variables still work."""
    path = credentials.store(LOGIN)
    path.write_text(text)
    with pytest.raises(errors.StateUnusable, match="has another form"):
        credentials.find()
    assert credentials.find(OTHER, "i", "s") == Credentials(OTHER, "i", "s")


def test_a_secret_is_in_no_representation() -> None:
    """A traceback that shows the object does not show the secret."""
    login = Credentials(LAB, "the-id", "the-secret")
    assert "the-secret" not in f"{login} {login!r}"
    assert login.authorization == "Key the-id:the-secret"


def test_writers_at_a_time_leave_a_whole_file() -> None:
    """Readers beside writers find one of the logins, never a part of a file."""
    logins = [Credentials(LAB, f"id{number}", "s" * 400) for number in range(8)]
    credentials.store(logins[0])
    with ThreadPoolExecutor(4) as threads:
        for stored in [threads.submit(credentials.store, login) for login in logins * 5]:
            assert credentials.find() in logins
            stored.result()
    assert json.loads(credentials.path().read_text())["default"] == LAB


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("lab.example", LAB),
        ("HTTPS://Lab.Example:443/", LAB),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://lab:80", "http://lab"),
        ("[::1]:8443", "https://[::1]:8443"),
        ("https://lab.example/atoll/", "https://lab.example/atoll"),
        ("localhost:8000", "https://localhost:8000"),
    ],
)
def test_addresses_have_one_form(given: str, expected: str) -> None:
    """Spellings of one address are equal."""
    assert credentials.address_of(given) == expected


@pytest.mark.parametrize(
    "given",
    [
        "",
        "ftp://lab",
        "https://",
        "https://user:secret@lab",
        "https://lab:0",
        "https://lab:99999",
        "https://lab:x",
        "https://lab?x=1",
        "https://lab#x",
        "https://la b",
        "https://lab\r\nX: 1",
        "https://l\u0430b.example",
        "https://lab\x00",
        "file:///etc/passwd",
        "https://la%62",
    ],
)
def test_what_is_no_address_is_refused(given: str) -> None:
    """Other schemes, names with passwords, control characters and look-alikes of letters are no address."""
    with pytest.raises(ValueError, match="no address") as caught:
        credentials.address_of(given)
    assert ("xn--" in str(caught.value)) == (not given.isascii())


def test_a_number_is_no_address() -> None:
    """Another type than a text is named as such."""
    with pytest.raises(TypeError, match="the address of a server is a text, is `5`"):
        credentials.address_of(5)  # type: ignore[arg-type]
