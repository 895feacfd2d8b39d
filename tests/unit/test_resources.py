"""Resources in plain numbers: how they are written, what travels of them, and a machine's share for them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import isolated
from atoll.errors import ResourcesUnavailable
from atoll.model import amounts
from atoll.model.machine_types import MACHINE_TYPES
from atoll.model.resources import Capacity, allot, largest_type
from atoll.model.specs import NO_NUMBERS, Call, EnvironmentSpec, LeaseSpec, Numbers
from atoll.model.stored_call import StoredCall

GIB = 1 << 30
SMALL = Capacity(2000, 21 * GIB, 20 * GIB, 1000)
CARDS = (("g0", "Tesla T4"), ("g1", "NVIDIA A100-SXM4-40GB"), ("g2", "NVIDIA A100-SXM4-40GB"))
WITH_CARDS = Capacity(16000, 200 * GIB, 180 * GIB, 1000, 3, CARDS)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("12GB", 12 * 10**9),
        ("12GiB", 12 * GIB),
        ("1.5 gb", 1_500_000_000),
        ("300MB", 300_000_000),
        ("64000 KiB", 64000 << 10),
        ("2TB", 2 * 10**12),
        ("40000000B", 40_000_000),
        (GIB, GIB),
    ],
)
def test_amounts_are_read_in_decimal_and_binary_units(text: Any, count: int) -> None:
    """Units are decimal, those with an `i` binary; a plain number counts bytes."""
    assert amounts.read_bytes("memory", text) == count


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"memory": "12 G"}, ValueError, r"memory=`12 G`: write `12GB` or `12GiB`"),
        ({"memory": "12"}, ValueError, r"memory=`12`: write `12GB` or `12GiB`"),
        ({"memory": 12}, ValueError, r'at least 32MB, is 12; write `memory="12GB"`'),
        ({"memory": "much"}, ValueError, r'a number with a unit, such as "12GB"'),
        ({"memory": "-1GB"}, ValueError, "number with a unit"),
        ({"memory": 1.5}, TypeError, r'a text such as "12GB" or a number of bytes, is 1.5'),
        ({"memory": True}, TypeError, "is True"),
        ({"memory": "99999999TB"}, ValueError, "more than any machine has"),
        ({"disk": "50PB"}, ValueError, r"disk=`50PB`: the largest units are `TB` and `TiB`"),
        ({"disk": "50"}, ValueError, r"disk=`50`: write `50GB` or `50GiB`"),
        ({"cpu": 0}, ValueError, "`cpu` must be from 0.01 to 10000, is 0"),
        ({"cpu": float("nan")}, ValueError, "is nan"),
        ({"cpu": "4"}, TypeError, "a number of cores such as 4 or 0.5, is '4'"),
        ({"gpu": "2"}, ValueError, r'`gpu="2"` is a text: write `gpu=2`'),
        ({"gpu": "A100:0"}, ValueError, "write `gpu=0`"),
        ({"gpu": "A100:x"}, ValueError, r'such as 1, "A100" or "A100:2"'),
        ({"gpu": -1}, ValueError, "from 0 to 1024"),
        ({"gpu": 1.5}, TypeError, "a number of GPUs"),
        ({"memry": "1GB"}, TypeError, "did you mean `memory`"),
    ],
)
def test_a_wrong_amount_is_refused_with_a_right_spelling(
    options: dict[str, Any], kind: type[Exception], said: str
) -> None:
    """An option that cannot be read says so where the function is defined, and how it is written."""
    with pytest.raises(kind, match=said.replace("(", r"\(")):
        isolated(**options)(len)


def test_options_become_the_numbers_of_the_lease() -> None:
    """Each option is in the lease's spec, through `on` too, and None gives it back to the machine type."""
    function = isolated(cpu=0.5, memory="300MB", gpu="A100:2", disk="50GB")(len)
    assert function.lease_spec().numbers == Numbers(500, 300_000_000, 2, "A100", 50 * 10**9)
    changed = function.on(gpu=None, cpu=4, disk=None)
    assert changed.lease_spec().numbers == Numbers(4000, 300_000_000)
    assert changed.on(memory=None, cpu=None).lease_spec().numbers is NO_NUMBERS
    assert isolated(gpu=0)(len).lease_spec().numbers == Numbers(gpus=0)


@given(
    st.builds(
        Numbers,
        st.integers(0, 10_000_000),
        st.integers(0, 1 << 60),
        st.integers(1, 1024),
        st.sampled_from(["", "A100", "rtx 4090"]),
        st.integers(0, 1 << 60),
    )
)
def test_numbers_travel_as_they_are(numbers: Numbers) -> None:
    """The daemon reads the numbers that a client wrote."""
    spec = LeaseSpec.from_data({"environment": {}, "numbers": numbers._asdict()})
    assert spec.numbers == numbers
    assert LeaseSpec.from_data(spec.to_data()) == spec


@pytest.mark.parametrize(
    "numbers",
    [
        {"millicores": -1},
        {"millicores": 1.5},
        {"memory_bytes": (1 << 60) + 1},
        {"memory_bytes": True},
        {"gpus": -2},
        {"gpus": 1025},
        {"gpus": 1, "card": "x" * 65},
        {"gpus": 1, "card": "\x1b[2J"},
        {"gpus": 1, "card": ["A100"]},
        {"card": "A100"},
        {"disk_bytes": "50GB"},
        [],
        None,
    ],
)
def test_numbers_of_a_client_are_checked(numbers: Any) -> None:
    """Numbers that no client of ours sends are refused with the field's name."""
    with pytest.raises(ValueError, match="`"):
        LeaseSpec.from_data({"environment": {}, "numbers": numbers})


@pytest.mark.parametrize(
    ("name", "numbers", "millicores", "reserved", "limit", "quota", "limited"),
    [
        ("", NO_NUMBERS, 1000, 0, 20 * GIB, 0, False),
        ("", Numbers(500), 500, 0, 20 * GIB, 500, True),
        ("", Numbers(memory_bytes=GIB), 1000, GIB, GIB, 0, True),
        ("", Numbers(disk_bytes=GIB), 1000, 0, 20 * GIB, 0, False),
        ("S", Numbers(memory_bytes=2 * GIB), 500, 2 * GIB, 2 * GIB, 500, True),
        ("S", Numbers(1500), 1500, GIB, GIB, 1500, True),
        ("XL", Numbers(memory_bytes=GIB), 2000, GIB, GIB, 2000, True),
    ],
)
def test_numbers_are_stronger_than_the_type(
    name: str, numbers: Numbers, millicores: int, reserved: int, limit: int, quota: int, limited: bool
) -> None:
    """Each number replaces the type's, and the rest stays the type's or the default."""
    found = allot(name, SMALL, numbers)
    assert (found.needs.millicores, found.needs.memory_bytes) == (millicores, reserved)
    assert (found.memory_bytes, found.millicores, found.limited) == (limit, quota, limited)


def test_more_memory_is_named_by_the_option_that_the_function_has() -> None:
    """After `memory`, twice as much is named, at most the machine's; after a type, the next one; else neither."""
    assert (allot("", SMALL, Numbers(memory_bytes=300_000_000)).next_memory, allot("S", SMALL).next_type) == (
        "600MB",
        "M",
    )
    assert allot("S", SMALL, Numbers(memory_bytes=15 * GIB)).next_memory == "21GiB"
    most = allot("S", SMALL, Numbers(memory_bytes=20 * GIB))
    assert (most.next_memory, most.next_type) == ("", ""), "a type would change nothing"


def test_numbers_are_kept_with_a_stored_call() -> None:
    """A call that is kept for later has the numbers that it was made with."""
    spec = LeaseSpec(EnvironmentSpec(), numbers=Numbers(500, GIB, 2, "A100", 10**9))
    stored = StoredCall(Call("c1", b"f", b"a"), spec, None)
    assert StoredCall.from_bytes(stored.to_bytes()).spec == spec


def test_a_shortfall_is_said_of_what_the_type_gives_alone() -> None:
    """A machine smaller than the type says so once, except for what the function names itself."""
    assert "2 of 8 CPUs and 21.0 of 128 GiB" in allot("XL", SMALL).shortfall
    assert "memory" not in allot("XL", SMALL, Numbers(memory_bytes=GIB)).shortfall
    assert allot("XL", SMALL, Numbers(1000, GIB)).shortfall == ""


@pytest.mark.parametrize(
    ("capacity", "numbers", "said", "hint"),
    [
        (
            SMALL,
            Numbers(64000, 500 * 10**9),
            'asks for `cpu=64` and `memory="500GB"`, and this machine has 2 CPUs and 21.0 GiB',
            'the largest type that fits is `M`; nearest: `cpu=2`, `memory="21GiB"`',
        ),
        (
            SMALL,
            Numbers(500, 500 * 10**9),
            'asks for `cpu=0.5` and `memory="500GB"`',
            'nearest: `cpu=0.5`, `memory="21GiB"`',
        ),
        (SMALL, Numbers(2001), "asks for `cpu=2.001`", "nearest: `cpu=2`"),
        (SMALL, Numbers(gpus=1), "asks for `gpu=1`, and this machine has no GPUs", "leave `gpu` out"),
        (WITH_CARDS, Numbers(gpus=4), "has 3 GPUs", "nearest: `gpu=3`"),
        (
            WITH_CARDS,
            Numbers(gpus=3, card="A100"),
            'asks for `gpu="A100:3"`, and this machine has 2 of them',
            'its cards are `Tesla T4`, `NVIDIA A100-SXM4-40GB`, `NVIDIA A100-SXM4-40GB`; nearest: `gpu="A100:2"`',
        ),
        (WITH_CARDS, Numbers(gpus=1, card="H100"), 'asks for `gpu="H100:1"`, and this machine has none', "`Tesla T4`"),
    ],
)
def test_numbers_larger_than_the_machine_fail_with_the_nearest(
    capacity: Capacity, numbers: Numbers, said: str, hint: str
) -> None:
    """A wish that the machine can never grant is refused with what it has and what would do."""
    with pytest.raises(ResourcesUnavailable) as caught:
        allot("", capacity, numbers)
    assert said in str(caught.value)
    assert hint in caught.value.hint


@given(st.integers(100, 10**5), st.integers(10**8, 10**13))
def test_the_nearest_numbers_are_granted(millicores: int, memory: int) -> None:
    """Whatever a machine has, the numbers that its refusal names are granted by it."""
    capacity = Capacity(millicores, memory, memory, 1000)
    nearest = amounts.read_bytes("memory", amounts.shown(memory))
    assert nearest <= memory
    assert allot("", capacity, Numbers(millicores, nearest)).memory_bytes == nearest > memory * 0.8
    largest = largest_type(capacity)
    assert not largest or not allot(largest, capacity).shortfall
    assert largest or all(allot(name, capacity).shortfall for name, one in MACHINE_TYPES.items() if not one.gpus)


@pytest.mark.parametrize(
    ("card", "product", "found"),
    [
        ("A100", "NVIDIA A100-SXM4-40GB", True),
        ("a100", "NVIDIA A100-SXM4-40GB", True),
        ("A10", "NVIDIA A100-SXM4-40GB", False),
        ("A100-40GB", "NVIDIA A100-SXM4-40GB", True),
        ("A100-80GB", "NVIDIA A100-SXM4-40GB", False),
        ("RTX 4090", "NVIDIA GeForce RTX 4090", True),
        ("4090 RTX", "NVIDIA GeForce RTX 4090", False),
        ("T4", "NVIDIA T400", False),
        ("T4", "", False),
    ],
)
def test_a_card_is_named_by_words_of_its_product(card: str, product: str, found: bool) -> None:
    """The words of a wish are whole words of the product's name, in any case and in its order."""
    assert amounts.names_card(card, product) == found


def test_the_cards_of_a_wish_are_the_gpus_that_will_do() -> None:
    """A named card leaves only its GPUs; a number leaves all."""
    assert allot("", WITH_CARDS, Numbers(gpus=1, card="A100")).needs.cards == ("g1", "g2")
    assert allot("", WITH_CARDS, Numbers(gpus=1)).needs.cards == ()
    assert allot("GPU", WITH_CARDS, Numbers(gpus=0)).needs.gpus == 0
