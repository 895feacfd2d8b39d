"""Headers that keep a user's file from acting on the page's origin.

A file is a download unless the request has `?inline`. Types come from a short list, by the name's ending; whatever a
browser could run is `application/octet-stream` or plain text. A sandbox without scripts holds, too, if a browser opens it.
"""

from __future__ import annotations

from urllib.parse import quote

from atoll.server.files.paths import shown

_TYPES = {
    "avif": "image/avif",
    "csv": "text/csv; charset=utf-8",
    "flac": "audio/flac",
    "gif": "image/gif",
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "json": "application/json",
    "mp3": "audio/mpeg",
    "mp4": "video/mp4",
    "ogg": "audio/ogg",
    "pdf": "application/pdf",
    "png": "image/png",
    "wav": "audio/wav",
    "webm": "video/webm",
    "webp": "image/webp",
}
_PLAIN = frozenset(
    [
        "bash",
        "c",
        "cc",
        "cfg",
        "cpp",
        "css",
        "go",
        "h",
        "hpp",
        "htm",
        "html",
        "ini",
        "ipynb",
        "java",
        "js",
        "jsonl",
        "jsx",
        "log",
        "lua",
        "md",
        "mjs",
        "patch",
        "pl",
        "py",
        "pyi",
        "r",
        "rb",
        "rs",
        "rst",
        "sh",
        "sql",
        "tex",
        "toml",
        "ts",
        "tsv",
        "tsx",
        "txt",
        "xhtml",
        "xml",
        "yaml",
        "yml",
    ]
)
"""Endings of text, shown as such: HTML and scripts among them."""
OCTETS = "application/octet-stream"
PLAIN = "text/plain; charset=utf-8"

SAFETY = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "sandbox; default-src 'none'; frame-ancestors 'self'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "cache-control": "private, no-cache",
    "vary": "authorization, cookie",
}
"""Headers of every answer with a user's content."""


def content_type(path: str) -> str:
    """Return the type of a file by its name's ending; never one that a browser runs."""
    ending = path.rpartition("/")[2].rpartition(".")[2].lower()
    return PLAIN if ending in _PLAIN else _TYPES.get(ending, OCTETS)


def disposition(path: str, *, inline: bool) -> str:
    """Return `Content-Disposition` with the file's name (RFC 6266): an ASCII form, and UTF-8 where that differs."""
    name = shown(path.rpartition("/")[2])
    plain = "".join(one if " " <= one <= "~" and one not in '"\\%' else "_" for one in name) or "file"
    exact = "" if plain == name else f"; filename*=UTF-8''{quote(name, safe='')}"
    return f'{"inline" if inline else "attachment"}; filename="{plain}"{exact}'
