"""A server of the page for one module of tests, programs that call functions, and a browser without a browser."""

from __future__ import annotations

import contextlib
import http.client
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import unescape
from http.cookies import SimpleCookie
from pathlib import Path
from urllib.parse import urlencode

from atoll.server.accounts import rows
from atoll.server.accounts.tokens import read_pepper
from atoll.server.database.database import Database
from atoll.server.database.tables import users
from atoll.server.principal import ADMIN, API

from ..conftest import Home
from .process import Server, running

EVIL = "<script>document.title='evil'</script>"
PROGRAM = """
import sys
import time
from pathlib import Path
from atoll import cloud, isolated

@isolated(host=cloud)
def greet(name):
    print("hello", name)
    return name

@isolated(host=cloud)
def fail():
    print("\\x1b[31m<script>document.title='evil'</script>\\x1b[0m\\u202e\\n 10%\\r100%")
    raise ValueError("<script>document.title='evil'</script>")

@isolated(host=cloud)
def wait():
    import os, time
    for count in range(3):
        print("step", count, "<script>document.title='evil'</script>")
    while not os.path.exists("/data/go-on"):
        time.sleep(0.05)
    print("went on")
    time.sleep(float(os.environ.get("LINGER", "0")))

@isolated(host=cloud)
def write(files):
    from pathlib import Path
    for name, content in files.items():
        path = Path("/data") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
"""


USERS = {
    "ada": rows.User("u-ada", "ada", True, time.time()),
    "bob": rows.User("u-bob", "bob", False, time.time()),
    "dan": rows.User("u-dan", "dan", False, time.time()),
    "eve": rows.User("u-eve", "<b>eve</b> \u202eof a long name that goes on and on and on and on", False, time.time()),
}
"""Users of the tests; `ada` makes the calls."""

SCOPES = {"ada": ADMIN, "bob": ADMIN, "dan": API, "eve": API}


@dataclass
class PageServer:
    """A server with `USERS`.

    Args:
        server: its process.
        keys: a key of each user.
    """

    server: Server
    keys: dict[str, str]

    @property
    def home(self) -> Home:
        """The state directory of the server and its node."""
        return self.server.home

    @property
    def url(self) -> str:
        """The address of the page."""
        return self.server.url

    def _login(self, user: str) -> dict[str, str]:
        key_id, _, secret = self.keys[user].partition(":")
        return {"ATOLL_HOST": self.url, "ATOLL_KEY_ID": key_id, "ATOLL_KEY_SECRET": secret}

    def start(self, code: str, user: str = "ada") -> subprocess.Popen[str]:
        """Start a program of a user that calls the functions of `PROGRAM`."""
        program = self.home.path / "program.py"
        program.write_text(PROGRAM)
        return subprocess.Popen(
            [sys.executable, "-c", f"from program import *\n{code}"],
            cwd=self.home.path,
            env=self.home.environment(self._login(user)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def call(self, code: str, user: str = "ada") -> str:
        """Run such a program to its end; return what it printed."""
        with self.start(code, user) as process:
            text, _ = process.communicate(timeout=120)
        assert process.returncode == 0, text
        return text


@contextlib.contextmanager
def page_server() -> Iterator[PageServer]:
    """Run a server; it and its node have ended at the end of the context."""
    with running(tls=False) as server:
        yield PageServer(server, add_users(server.home.path))


def add_users(home: Path) -> dict[str, str]:
    """Add `USERS` to a state directory; return a key of each."""
    found = {}
    with contextlib.closing(Database(home, "")) as database, database.writing() as connection:
        for name, user in USERS.items():
            connection.execute(users.insert().values(**vars(user)))
            key, secret = rows.add_key(connection, read_pepper(home), user, scope=SCOPES[name], alias="first")
            found[name] = f"{key.id}:{secret}"
    return found


@dataclass
class Answer:
    """An answer to a request."""

    status: int
    headers: Mapping[str, str]
    text: str
    cookies: list[str]


@dataclass
class Visitor:
    """A client that keeps cookies and sends the headers of a browser.

    Args:
        headers: of every request; those of a navigation at first.
    """

    server: PageServer
    cookies: dict[str, str] = field(default_factory=dict)
    site: str = "same-origin"

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str | None) -> Answer:
        """Send a request; names of headers with `_` for `-`, None for one that is left out."""
        sent: dict[str, str | None] = {
            "sec-fetch-site": self.site,
            "sec-fetch-mode": "navigate",
            "sec-fetch-dest": "document",
            "accept": "text/html",
            "cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items()) or None,
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        if method == "POST":
            sent.setdefault("origin", self.server.url)
            sent.setdefault("content-type", "application/x-www-form-urlencoded")
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server.port, timeout=60)
        try:
            known = {name: value for name, value in sent.items() if value is not None}
            connection.request(method, path, body, known)
            answer = connection.getresponse()
            text = answer.read().decode("utf-8", "replace")
            given = answer.headers.get_all("set-cookie", [])
        finally:
            connection.close()
        for one in given:
            for name, morsel in SimpleCookie(one).items():
                if morsel["max-age"] == "0":
                    self.cookies.pop(name, None)
                else:
                    self.cookies[name] = morsel.value
        found = {name.lower(): value for name, value in answer.headers.items()}
        return Answer(answer.status, found, text, given)

    def get(self, path: str, **headers: str | None) -> Answer:
        """Load a page."""
        return self.ask("GET", path, None, **headers)

    def post(self, path: str, fields: Mapping[str, str], **headers: str | None) -> Answer:
        """Send a form."""
        return self.ask("POST", path, urlencode(fields).encode(), **headers)

    def token(self, path: str) -> str:
        """Return the token of the forms on a page."""
        found = re.search(r'name="token" value="([0-9a-f]+)"', self.get(path).text)
        assert found is not None, path
        return found[1]

    def log_in(self, name: str) -> Visitor:
        """Begin a session with the key of a user of `page_server`."""
        answer = self.post("/login", {"token": self.token("/login"), "key": self.server.keys[name]})
        assert answer.status == 303, answer.text
        return self


def visible(html: str) -> str:
    """Return the text of a page, without tags."""
    return unescape(re.sub(r"<[^>]*>", "", html))


class Lines:
    """The lines of an answer that goes on, read in a thread of its own.

    Args:
        visitor: asks for it.
        fields: of a form that is sent; None for a page that is loaded.
    """

    def __init__(self, visitor: Visitor, path: str, fields: Mapping[str, str] | None = None) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", visitor.server.server.port, timeout=60)
        cookie = "; ".join(f"{name}={value}" for name, value in visitor.cookies.items())
        headers = {"cookie": cookie, "sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"}
        if fields is None:
            self.connection.request("GET", path, headers=headers)
        else:
            headers |= {"accept": "application/x-ndjson", "content-type": "application/x-www-form-urlencoded"}
            self.connection.request("POST", path, urlencode(fields), headers)
        self.answer = self.connection.getresponse()

    def until(self, text: str) -> str:
        """Read lines until one has a text; return it."""
        while line := self.answer.readline().decode():
            if text in line:
                return line
        raise AssertionError(f"no line has {text}")

    def rest(self) -> float:
        """Read to the end; return the seconds that it took."""
        began = time.monotonic()
        self.answer.read()
        return time.monotonic() - began

    def close(self) -> None:
        """Leave."""
        self.answer.close()
        self.connection.close()
