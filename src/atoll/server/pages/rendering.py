"""Templates, and the filters by which texts, sizes and times become HTML."""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from atoll.model.sizes import duration_text, size_text
from atoll.terminal_text import cell, lines

_PLACE = Path(__file__).parent
ASSETS = _PLACE / "assets"
TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_COLOURS = re.compile(r"\x1b\[[0-9;]{0,40}m")
_OVERWRITTEN = re.compile(
    r"^[^\n]*\r(?!\n|$)", re.MULTILINE
)  # tried at the start of lines alone: a long one is read once


def output_text(text: str) -> str:
    """Return a function's output for the page: without colours, and lines that were overwritten as they ended up."""
    shown = _COLOURS.sub("", text).replace("\r\n", "\n")
    return lines(_OVERWRITTEN.sub("", shown).replace("\r", "\n"))


def moment(at: float) -> Markup:
    """Return a time for people: in UTC, which the page's script turns into the reader's zone."""
    try:
        when = dt.datetime.fromtimestamp(at, dt.UTC)
    except (OverflowError, ValueError, OSError):
        return Markup("<span>{}</span>").format(f"{at:.0f} s")
    text = f"{when:%Y-%m-%d %H:%M:%S} UTC"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(f"{when:%Y-%m-%dT%H:%M:%SZ}", text, text)


def asset_address(name: str) -> str:
    """Return the address of a file of the page; another content has another address."""
    return f"/assets/{asset_digest(name)}/{name}"


@functools.cache
def asset_digest(name: str) -> str:
    return hashlib.blake2b((ASSETS / name).read_bytes(), digest_size=8).hexdigest()


def address(*parts: str) -> str:
    """Return the path of an address whose parts are names of others; a `/` in them separates."""
    return "/" + "/".join(quote(part.strip("/")) for part in parts if part.strip("/"))


@functools.cache
def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PLACE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters.update(
        cell=cell, lines=lines, output=output_text, size=size_text, duration=duration_text, moment=moment
    )
    made.globals.update(asset=asset_address, address=address)
    return made


def render(template: str, **values: Any) -> str:
    """Return a template filled with values, all of which are escaped."""
    return _environment().get_template(template).render(**values)
