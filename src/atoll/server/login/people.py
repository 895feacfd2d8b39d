"""The user that a person of an issuer is: by issuer and subject alone, never by a name or a mail address.

Names and addresses change hands; `iss` with `sub` does not. A person who is new gets a user of a name that is free, if
the operator wants so, and never one that is there already.
"""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import Connection, select

from atoll import errors
from atoll.server.accounts import names, rows
from atoll.server.accounts.audit import MACHINE, audit
from atoll.server.accounts.rows import User
from atoll.server.database.tables import users
from atoll.server.login.options import LoginOptions
from atoll.terminal_text import cell

MOST_NUMBER = 1000


def check_admitted(claims: dict[str, Any], options: LoginOptions) -> None:
    """Check that the operator's rules admit a person.

    Raises:
        NotAuthorized: 403, they do not.
    """
    if options.domains:
        address = claims.get("email")
        domain = address.rpartition("@")[2].lower() if isinstance(address, str) and address.isascii() else ""
        if claims.get("email_verified") is not True or domain not in [one.lower() for one in options.domains]:
            raise _barred("the person has no verified mail address of an allowed domain")
    for rule in options.claims:
        name, _, wanted = rule.partition("=")
        value = claims.get(name)
        if not (wanted in value if isinstance(value, list) else _text(value) == wanted):
            raise _barred(f"the claim `{name}` is not `{wanted}`")


def _text(value: object) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (str, int)) else None


def user_of(connection: Connection, claims: dict[str, Any], options: LoginOptions) -> User:
    """Return the user of a person; one who is new gets one if the operator wants so.

    Raises:
        NotAuthorized: 403, the person has none.
    """
    subject = str(claims["sub"])
    found = rows.user_of_identity(connection, options.issuer, subject)
    if found is not None:
        return found
    if not options.new_users:
        raise _barred(
            f"no user is the subject `{cell(subject, 255)}`",
            f"the operator adds you: `atoll users add NAME --issuer {options.issuer} --subject {cell(subject, 255)}`",
        )
    user = rows.add_user(connection, _free_name(connection, claims))
    rows.link(connection, user, options.issuer, subject)
    audit(connection, MACHINE, "user.add", user.id, {"name": user.name, "issuer": options.issuer, "subject": subject})
    return user


def _free_name(connection: Connection, claims: dict[str, Any]) -> str:
    for claim in ("preferred_username", "email", "nickname", "given_name"):
        name = name_from(claims.get(claim))
        if name:
            break
    else:
        name = "user"
    stem = name[: names.MOST_NAME - 5].rstrip("._-")
    taken = set(
        connection.execute(select(users.c.name).where(users.c.name.startswith(stem, autoescape=True))).scalars()
    )
    for number in range(1, MOST_NUMBER):
        chosen = name if number == 1 else f"{stem}-{number}"
        if chosen not in taken and chosen not in names.RESERVED:
            return chosen
    raise _barred(f"no name like `{name}` is free")


def name_from(value: object) -> str:
    """Return a user's name that is like a text of the issuer; empty where nothing of it can be one."""
    if not isinstance(value, str):
        return ""
    plain = re.sub(r"[^a-z0-9._-]+", "-", value.partition("@")[0].lower()[:200])
    plain = re.sub(r"[._-]{2,}", "-", plain)
    plain = re.sub(r"^[^a-z]+", "", plain)[: names.MOST_NAME].strip("._-")
    return plain if re.fullmatch(names.NAME, plain) else ""


def _barred(reason: str, hint: str = "ask the operator of the server") -> errors.NotAuthorized:
    return errors.NotAuthorized(f"the login is refused: {reason}", hint=hint, status=403)
