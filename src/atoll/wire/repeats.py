"""Large pieces of messages that repeat: on a line a node is told their digests, and gets their bytes once; no I/O.

Theory of operation. A node that keeps pieces says so in `granted`: `keeps`, the most bytes of one. These headers then
travel on the line of the lease, in order with channel 0:

    keep {size, hint}            ->     the next so many bytes of channel 0 are a piece, passed on as ever and kept
    have {pieces}                ->     digest, size and hint of each; the client waits for the answer
                                 <-     has {kept}: the digests of those that the node has
    kept {digest}                ->     stands for the bytes of one of these: the node passes them on

A hint is a digest of samples. A client that meets a hint for the first time sends the piece with `keep` and computes
nothing else; only a piece that looks like an earlier one is digested, and asked for. The node trusts neither: a piece has
the digest that the node itself computes of the bytes that came, once somebody asks for a piece of its size and hint. A
node that hears of a piece that is under way on another line, or is about to be, answers when that one has come.

A changed array has another digest, whatever its hint. Nothing is said about messages without large pieces.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from atoll.blake2 import blake2b

LEAST_BYTES = 1 << 20
"""Pieces of a message with fewer bytes in all are sent without a word: a question costs a round trip."""
PIECE_BYTES = 64 << 10
"""The least of one piece."""
MOST_NAMED = 16
"""Pieces of one message, the largest ones: each costs a header."""
MOST_REMEMBERED = 4096
"""Hints that a program remembers."""
_SAMPLES, _SAMPLE_BYTES = 64, 64


class Named(NamedTuple):
    """A large piece of a message.

    Args:
        place: among the message's pieces.
        digest: empty for a piece that looks like no earlier one.
    """

    place: int
    size: int
    hint: str
    digest: str


class Sent:
    """The hints of pieces that were sent before; for any thread, and for a forked child."""

    def __init__(self) -> None:
        self._hints: dict[str, None] = {}

    def add(self, hint: str) -> bool:
        """Remember a hint; return whether it was known."""
        known = hint in self._hints
        self._hints[hint] = None
        if len(self._hints) > MOST_REMEMBERED:
            with contextlib.suppress(RuntimeError, StopIteration, KeyError):  # another thread does it
                del self._hints[next(iter(self._hints))]
        return known


def joined(pieces: list[Any]) -> list[Any]:
    """Return the pieces of a message with its small ones, such as the files of a project, in one if they are many bytes."""
    small = [piece for piece in pieces[1:] if len(piece) < PIECE_BYTES]
    if len(small) < 2 or sum(map(len, small)) < LEAST_BYTES:
        return pieces
    made: list[Any] = pieces[:1]  # the header differs from call to call
    for is_small, group in itertools.groupby(pieces[1:], lambda piece: len(piece) < PIECE_BYTES):
        run = list(group)
        made += [b"".join(run)] if is_small else run
    return made


def find(pieces: Sequence[Any], most_bytes: int, sent: Sent) -> list[Named]:
    """Return the pieces of a message that are worth a name, in their order.

    Args:
        pieces: bytes and views, of single bytes where they are large.
        most_bytes: of a piece that the node keeps.
        sent: gets their hints.
    """
    sizes = [(len(piece), place) for place, piece in enumerate(pieces) if PIECE_BYTES <= len(piece) <= most_bytes]
    if sum(size for size, _ in sizes) < LEAST_BYTES:
        return []
    found: dict[str, Named] = {}
    for size, place in sorted(sizes, reverse=True)[:MOST_NAMED]:
        hint = hint_of(pieces[place])
        if hint not in found:  # a piece that comes twice in one message travels twice
            digest = digest_of((pieces[place],)) if sent.add(hint) else ""
            found[hint] = Named(place, size, hint, digest)
    return sorted(found.values())


def marked(pieces: Sequence[Any], named: Iterable[Named], kept: set[str]) -> list[Any]:
    """Return what to send: pieces, and headers ahead or in place of those that have a name."""
    by_place = {one.place: one for one in named}
    made: list[Any] = []
    for place, piece in enumerate(pieces):
        one = by_place.get(place)
        if one is not None and one.digest in kept:
            made.append({"type": "kept", "digest": one.digest})
            continue
        if one is not None:
            made.append({"type": "keep", "size": one.size, "hint": one.hint})
        made.append(piece)
    return made


def hint_of(piece: Any) -> str:
    """Return a digest of the size and some samples of a piece."""
    view = memoryview(piece)
    step = max(1, (view.nbytes - _SAMPLE_BYTES) // (_SAMPLES - 1))
    samples = b"".join(view[at : at + _SAMPLE_BYTES] for at in range(0, step * _SAMPLES, step))
    return blake2b(samples, digest_size=12, key=view.nbytes.to_bytes(8, "big")).hexdigest()


def digest_of(parts: Iterable[Any]) -> str:
    """Return the digest of a piece in parts.

    SHA-256: processors have instructions for it, and with a cable of 1 Gbit/s to send the bytes takes ten times as long.
    """
    from hashlib import sha256  # large payloads only

    state = sha256()
    for part in parts:
        state.update(part)
    return state.hexdigest()
