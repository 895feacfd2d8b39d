"""`atoll auth`: log in to a server, see as whom, log out."""

from __future__ import annotations

import getpass
import re
import sys
from typing import Annotated

import cyclopts

from atoll import credentials, errors, settings
from atoll.cli.accounts.client import ask, part
from atoll.cli.tables import print_json
from atoll.cli.terminal import echo
from atoll.credentials import Credentials
from atoll.terminal_text import printable

app = cyclopts.App(
    name="auth",
    help="Log in to a server, see as whom you are, log out.",
    help_format="plaintext",
    version_flags=[],
    result_action="return_value",
)

_Key = cyclopts.Parameter(allow_leading_hyphen=True)  # `-`
Flag = cyclopts.Parameter(negative="")


@app.command
def login(*, host: str = "", key: Annotated[str, _Key] = "", ca_file: str = "", alias: str = "") -> int:
    """Log in to a server, and keep its key in a file that you alone can read.

    Without `--key` the server's issuer of identities is asked in the browser where it has one; else the key is asked
    for, or read from the standard input.

    Parameters
    ----------
    host: str
        Address of the server, such as https://lab.example; default: ATOLL_HOST, or the server of the last login.
    key: str
        The key as ID:SECRET; `-` asks for it, or reads it from the standard input.
    ca_file: str
        Certificates to trust for this server, in PEM; default: ATOLL_CA_FILE, or those of the last login there.
    alias: str
        Note beside the key that a login by browser makes.
    """
    url = _address(host)
    known = next((one.ca_file for one in credentials.logins() if one.url == url), "")
    server = Credentials(url, "", "", _absolute(ca_file or settings.variable("ATOLL_CA_FILE")) or known)
    if url.startswith("http://") and not _is_loopback(url):
        echo("warning: without https the key can be read on its way", error=True)
    if not key:
        from atoll.cli.accounts import device

        made = device.log_in(server, alias)
    else:
        made = None
    if made is None:
        key_id, secret = _halves(_ask_key() if key in ("", "-") else key)
        credentials.check_key(key_id, secret)
        made = Credentials(url, key_id, secret, server.ca_file)
    found = ask(made, "GET", "/v1/whoami")
    path = credentials.store(made)
    echo(f"logged in to {url} as {found['name']}; the key is in {path}", error=True)
    return 0


@app.command
def whoami(*, host: str = "", json: Annotated[bool, Flag] = False) -> int:
    """Show the server, the user and the key in use.

    Parameters
    ----------
    host: str
        Address of the server; default: the one in use.
    json: bool
        Print an object with `host`, `user`, `name`, `key`, `scope` and `operator`.
    """
    server = credentials.find(host)
    if server is None:
        raise errors.NotAuthorized("you are not logged in to a server", hint="run `atoll auth login --host URL`")
    found = ask(server, "GET", "/v1/whoami")
    if json:
        print_json({"host": server.url, **found})
    else:
        rights = ", operator" if found["operator"] else ""
        echo(f"{found['name']} at {server.url} (key {found['key']}, scope {found['scope']}{rights})")
    return 0


@app.command
def logout(*, host: str = "", revoke: Annotated[bool, Flag] = False) -> int:
    """Remove a server's key from the file.

    Parameters
    ----------
    host: str
        Address of the server; default: the one of the last login.
    revoke: bool
        Revoke the key at the server, too.
    """
    known = [one for one in credentials.logins() if not host or one.url == credentials.address_of(host)]
    if not known:
        echo("you are not logged in" + (f" to {credentials.address_of(host)}" if host else ""), error=True)
        return 1
    if revoke:
        ask(known[0], "DELETE", f"/v1/keys/{part(known[0].key_id)}")
    credentials.forget(known[0].url)
    more = (
        ""
        if revoke
        else f"; the key is still valid, and another key ends it: `atoll key revoke {printable(known[0].key_id)}`"
    )
    echo(f"logged out of {known[0].url}{more}", error=True)
    return 0


def _address(host: str) -> str:
    found = credentials.named(host)
    if not found:
        known = credentials.logins()
        found = known[0].url if known else ""
    if not found:
        raise errors.CallerError("no server is named", hint="give its address: `atoll auth login --host URL`")
    return found


def _ask_key() -> str:
    if sys.stdin is not None and not sys.stdin.isatty():
        text = sys.stdin.readline(1024)
        return text + (sys.stdin.readline(1024) if _VARIABLE.match(text) else "")
    text = getpass.getpass("key (ID:SECRET, not shown): ", sys.stderr)
    if not _VARIABLE.match(text):
        return text
    return f"{text}\n{getpass.getpass('the second line (not shown): ', sys.stderr)}"  # a terminal gives one at a time


_VARIABLE = re.compile(r"\s*(?:export )?[A-Z]+_KEY_(ID|SECRET)=")


def _halves(text: str) -> tuple[str, str]:
    """Return id and secret of a key as `ID:SECRET`, or as the variables that make them."""
    if not _VARIABLE.match(text):
        key_id, _, secret = text.strip().partition(":")
        return key_id, secret
    found: dict[str, str] = {}
    for one in text.replace(";", "\n").splitlines():
        if match := _VARIABLE.match(one):
            found[match[1]] = one[match.end() :].strip().strip("'\"")
    return found.get("ID", ""), found.get("SECRET", "")


def _absolute(path: str) -> str:
    from pathlib import Path

    return str(Path(path).expanduser().absolute()) if path else ""


def _is_loopback(url: str) -> bool:
    host = url.removeprefix("http://").partition("/")[0]
    return host.startswith(("127.", "localhost", "[::1]"))
