"""Kept pieces: names of a message's pieces, bounds of the store, and who waits for whom."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from atoll.server.line import kept as kept_module
from atoll.server.line.kept import UNUSED_SECONDS, Kept, Piece, Whose
from atoll.wire import repeats
from atoll.wire.repeats import LEAST_BYTES, MOST_NAMED, PIECE_BYTES, Named, Sent

ANN, BOB = Whose("ann", "1"), Whose("bob", "1")
MOST = 1 << 40


class Clock:
    """Seconds that a test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def run(make: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(make())


def put(kept: Kept, data: bytes, whose: Whose = ANN, hint: str = "") -> Piece | None:
    """Have a piece come."""
    piece = kept.begin(whose, len(data), hint or repeats.hint_of(data))
    if piece is not None:
        piece.add(data)
        kept.finish(piece)
    return piece


async def get(kept: Kept, data: bytes, whose: Whose = ANN, hint: str = "") -> Piece | None:
    """Ask for a piece, and promise nothing where it is not there."""
    digest = repeats.digest_of((data,))
    found, expected = await kept.ask(whose, len(data), hint or repeats.hint_of(data), digest)
    if expected is not None:
        kept.drop(expected)
    if found is not None:
        kept.release(found)
    return found


@pytest.mark.parametrize(
    ("sizes", "most", "places"),
    [
        ([100, LEAST_BYTES], MOST, [1]),
        ([LEAST_BYTES - 1], MOST, []),
        ([PIECE_BYTES] * 15, MOST, []),
        ([PIECE_BYTES - 1] * 20, MOST, []),
        ([PIECE_BYTES, LEAST_BYTES, PIECE_BYTES], MOST, [0, 1, 2]),
        ([2 * LEAST_BYTES, LEAST_BYTES], LEAST_BYTES, [1]),
    ],
)
def test_large_pieces_of_large_messages_are_named(sizes: list[int], most: int, places: list[int]) -> None:
    """Small pieces, small messages and pieces that the node would not keep travel as ever."""
    pieces = [os.urandom(size) for size in sizes]
    assert [one.place for one in repeats.find(pieces, most, Sent())] == places


def test_a_piece_is_digested_at_its_second_sight() -> None:
    """The first time costs samples alone; a change that the samples miss gives another digest."""
    sent, data = Sent(), bytearray(os.urandom(4 * LEAST_BYTES))
    assert repeats.find([memoryview(data)], MOST, sent) == [Named(0, len(data), repeats.hint_of(data), "")]
    assert repeats.find([memoryview(data)], MOST, sent)[0].digest == repeats.digest_of((data,))
    place = next(at for at in range(len(data)) if repeats.hint_of(_changed(data, at)) == repeats.hint_of(data))
    changed = _changed(data, place)
    assert repeats.find([changed], MOST, sent)[0].digest == repeats.digest_of((changed,)) != repeats.digest_of((data,))


def _changed(data: bytes | bytearray, place: int) -> bytes:
    return bytes(data[:place]) + bytes([data[place] ^ 1]) + bytes(data[place + 1 :])


def test_the_largest_pieces_have_names_and_equal_ones_one() -> None:
    """A message has a bounded number of headers, and a piece that comes twice has one."""
    pieces = [os.urandom(PIECE_BYTES + number) for number in range(2 * MOST_NAMED)]
    assert [one.place for one in repeats.find(pieces, MOST, Sent())] == list(range(MOST_NAMED, 2 * MOST_NAMED))
    twice = [bytes(LEAST_BYTES), bytes(LEAST_BYTES)]
    assert len(repeats.find(twice, MOST, Sent())) == 1


def test_many_small_pieces_are_one() -> None:
    """The files of a project have a name together; the header ahead stays by itself."""
    files = [os.urandom(PIECE_BYTES // 2) for _ in range(40)]
    large = bytes(PIECE_BYTES)
    assert repeats.joined([b"head", *files, large, b"x", b"y"]) == [b"head", b"".join(files), large, b"xy"]
    assert repeats.joined([b"head", *files[:3], large]) == [b"head", *files[:3], large]


def test_hints_are_forgotten() -> None:
    """A program remembers a bounded number of hints."""
    sent = Sent()
    assert not sent.add("first")
    assert sent.add("first")
    for number in range(repeats.MOST_REMEMBERED):
        sent.add(str(number))
    assert not sent.add("first")


def test_marks_stand_where_the_bytes_would() -> None:
    """A piece that the node has is a header in its place; one that it shall keep has a header ahead."""
    named = [Named(1, 2, "aa", "d1"), Named(2, 2, "bb", "")]
    assert repeats.marked([b"head", b"xx", b"yy"], named, {"d1"}) == [
        b"head",
        {"type": "kept", "digest": "d1"},
        {"type": "keep", "size": 2, "hint": "bb"},
        b"yy",
    ]


def test_a_piece_is_found_by_its_owner_alone() -> None:
    """Neither another user nor another key of the same one finds it."""

    async def work() -> None:
        kept, data = Kept(1 << 20), os.urandom(1000)
        piece = put(kept, data)
        assert await get(kept, data) is piece
        assert await get(kept, data, BOB) is None
        assert await get(kept, data, Whose("ann", "2")) is None
        assert kept.bytes == 1000

    run(work)


def test_the_bytes_that_came_have_the_name() -> None:
    """A piece that came with the hint of another one is found by its own digest only."""

    async def work() -> None:
        kept, data, claimed = Kept(1 << 20), os.urandom(1000), os.urandom(1000)
        piece = put(kept, data, hint="aa")
        assert await get(kept, claimed, hint="aa") is None
        assert await get(kept, data, hint="aa") is piece

    run(work)


def test_a_bound_drops_what_is_longest_unused() -> None:
    """A key has at most its part, and loses the piece that nobody has used for longest; what is pinned stays."""

    async def work() -> None:
        clock = Clock()
        kept = Kept(8000, clock)
        first, second, third = (os.urandom(size) for size in (1500, 1400, 1300))
        for data in (first, second):
            assert put(kept, data) is not None
            clock.now += 1
        pinned, _ = await kept.ask(ANN, len(first), repeats.hint_of(first), repeats.digest_of((first,)))
        assert pinned is not None
        clock.now += 1
        assert put(kept, os.urandom(4001)) is None
        assert put(kept, os.urandom(3000)) is None
        assert await get(kept, second) is not None  # nothing was dropped in vain
        clock.now += 1
        kept.release(pinned)
        clock.now += 1
        assert put(kept, third) is not None
        assert kept.bytes == 2800
        assert await get(kept, first) is pinned
        assert await get(kept, second) is None

    run(work)


def test_the_number_of_pieces_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small ones cost memory beside their bytes."""
    monkeypatch.setattr(kept_module, "MOST_PIECES", 2)

    async def work() -> None:
        kept = Kept(8000)
        for _ in range(3):
            assert put(kept, os.urandom(100)) is not None
        assert kept.bytes == 200

    run(work)


def test_all_together_are_bounded() -> None:
    """The user who has most gives way."""

    async def work() -> None:
        kept = Kept(8000)
        for whose, size in ((ANN, 2000), (ANN, 1999), (BOB, 3000), (Whose("eve", "1"), 3000)):
            assert put(kept, os.urandom(size), whose) is not None
        assert kept.bytes == 1999 + 3000 + 3000

    run(work)


def test_unused_pieces_and_those_of_ended_keys_go() -> None:
    """After a while without use, after the end of a key, and at the end nothing is left."""

    async def work() -> None:
        clock = Clock()
        kept, others = Kept(1 << 20, clock), os.urandom(1000)
        put(kept, os.urandom(1000))
        clock.now += UNUSED_SECONDS / 2
        kept.expire()
        assert kept.bytes == 1000
        clock.now += UNUSED_SECONDS
        kept.expire()
        assert kept.bytes == 0
        piece = put(kept, os.urandom(1000))
        assert piece is not None
        piece.lines += 1  # its line is open
        clock.now += 2 * UNUSED_SECONDS
        kept.expire()
        assert kept.bytes == 1000
        kept.leave([piece])
        kept.expire()
        assert kept.bytes == 1000
        clock.now += 2 * UNUSED_SECONDS
        kept.expire()
        assert kept.bytes == 0
        put(kept, os.urandom(1000))
        put(kept, others, BOB)
        kept.end_of("ann", "1")
        assert kept.bytes == 1000
        pinned, _ = await kept.ask(BOB, 1000, repeats.hint_of(others), repeats.digest_of((others,)))
        assert pinned is not None
        kept.close()
        assert kept.bytes == 0
        assert b"".join(pinned.parts) == others  # a line passes it on
        kept.release(pinned)
        assert not pinned.parts
        assert put(kept, os.urandom(1000)) is None

    run(work)


def test_who_asks_for_a_piece_under_way_waits_for_it() -> None:
    """One line sends, others that ask meanwhile get what it has sent; or send it themselves, one of them, if it ends."""

    async def work() -> None:
        kept, data = Kept(1 << 20), os.urandom(1000)
        hint, digest = repeats.hint_of(data), repeats.digest_of((data,))
        _, expected = await kept.ask(ANN, 1000, hint, digest)
        assert expected is not None
        others = [asyncio.create_task(kept.ask(ANN, 1000, hint, digest)) for _ in range(3)]
        await asyncio.sleep(0)
        assert not any(other.done() for other in others)
        kept.drop(expected)
        done, waiting = await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
        ((_, again),) = (one.result() for one in done)
        assert again is not None
        again.add(data)
        kept.finish(again)
        found = [await other for other in waiting]
        assert found == [(again, None)] * 2
        assert again.pins == 2

    run(work)


def test_nobody_waits_for_a_piece_that_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that does not send what it began costs the others a while, and not their calls."""
    monkeypatch.setattr(kept_module, "STALLED_SECONDS", 0.01)

    async def work() -> None:
        kept = Kept(1 << 20)
        piece = kept.begin(ANN, 1000, "aa")
        assert piece is not None
        assert await kept.ask(ANN, 1000, "aa", "0" * 64) == (None, None)
        other = asyncio.create_task(kept.ask(ANN, 1000, "aa", "0" * 64))
        await asyncio.sleep(0)
        kept.close()
        assert await other == (None, None)

    run(work)
