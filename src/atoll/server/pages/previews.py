"""Previews of files: the beginning of a text or a table, or the kind of element that shows the rest. Pure."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field

from atoll.terminal_text import cell, lines

MOST_BYTES = 256 << 10
"""Bytes of a file that its preview is made from."""
MOST_ROWS, MOST_COLUMNS, MOST_CELL = 200, 40, 200
MOST_IMAGE_BYTES = 50 << 20
MEDIA = {
    **dict.fromkeys(("png", "jpg", "jpeg", "gif", "webp", "avif"), "image"),
    **dict.fromkeys(("mp3", "ogg", "wav", "flac"), "audio"),
    **dict.fromkeys(("mp4", "webm"), "video"),
}
TABLES = {"csv": ",", "tsv": "\t"}


@dataclass(frozen=True)
class Preview:
    """A part of a file, ready to be shown.

    Args:
        kind: `text`, `table`, `image`, `audio`, `video` or `none`.
        text: of a text.
        rows: of a table, the first one its heading.
        cut: it is not the whole file.
        reason: says why there is none.
    """

    kind: str
    text: str = ""
    rows: list[list[str]] = field(default_factory=list)
    cut: bool = False
    reason: str = ""


def ending_of(name: str) -> str:
    """Return the ending of a file's name in small letters, without the dot."""
    return name.rpartition("/")[2].rpartition(".")[2].lower() if "." in name else ""


def of_media(name: str, size: int) -> Preview | None:
    """Return the preview of a file that a browser shows by itself; None for another one."""
    kind = MEDIA.get(ending_of(name))
    if kind is None:
        return None
    if kind == "image" and size > MOST_IMAGE_BYTES:
        return Preview("none", reason="The image is too large for a preview.")
    return Preview(kind)


def of_content(name: str, content: bytes, size: int) -> Preview:
    """Return the preview of a file from its first bytes, at most `MOST_BYTES`."""
    cut = size > len(content)
    if not size:
        return Preview("none", reason="The file is empty.")
    text = _text(content, cut=cut)
    if text is None:
        return Preview("none", reason="There is no preview of this kind of file.")
    if (separator := TABLES.get(ending_of(name))) is not None:
        rows, more = _rows(text, separator, cut=cut)
        if rows:
            return Preview("table", rows=rows, cut=cut or more)
    return Preview("text", text=lines(text.replace("\r\n", "\n")), cut=cut)


def _text(content: bytes, *, cut: bool) -> str | None:
    """Return a file's text; None where it is none."""
    if b"\0" in content:
        return None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if cut and error.start > len(content) - 4:  # a character at the end is not whole
            return content[: error.start].decode("utf-8-sig")
    text = content.decode("latin-1")
    return text if sum(char >= " " or char in "\t\n\r" for char in text) > 0.95 * len(text) else None


def _rows(text: str, separator: str, *, cut: bool) -> tuple[list[list[str]], bool]:
    """Return the first rows of a table, and whether there are more rows or columns."""
    if cut:
        text = text[: text.rfind("\n") + 1]
    found: list[list[str]] = []
    more = False
    try:
        for row in csv.reader(text.splitlines(keepends=True), delimiter=separator):
            if len(found) > MOST_ROWS:
                more = True
                break
            more = more or len(row) > MOST_COLUMNS
            found.append([cell(one, MOST_CELL) for one in row[:MOST_COLUMNS]])
    except csv.Error:  # a field that is too long, or a NUL
        return [], False
    width = max(map(len, found), default=0)
    return [row + [""] * (width - len(row)) for row in found], more
