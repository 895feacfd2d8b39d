"""Placement: which node a wish gets, who waits for what, and figures that come late or never."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from atoll.server.cluster.contract import NodeLoad, Place, Shares, Wish
from atoll.server.cluster.placement import PATIENCE_SECONDS, Placement
from atoll.server.cluster.placing.kinds import MOST_EXACT
from atoll.server.cluster.placing.node_room import SETTLED_SECONDS
from atoll.server.cluster.placing.refusals import AWAY_SECONDS
from atoll.server.cluster.placing.sizes import size_of
from tests.unit.placing import GIB, Cluster, Machine, wish

# --- which node ---------------------------------------------------------------------------------------------------------


def test_wishes_spread_over_nodes() -> None:
    """Each goes to the node with the most room left."""
    cluster = Cluster(Machine("a"), Machine("b"), Machine("c"))
    assert Counter(cluster.ask(wish(str(number))) for number in range(9)) == {"a": 3, "b": 3, "c": 3}


def test_a_sandbox_of_the_same_use_is_taken_again() -> None:
    """The node that was given one back last is chosen, although others have more room."""
    cluster = Cluster(Machine("a"), Machine("b"))
    first = cluster.ask(wish("0", warm="w"))
    cluster.ask(wish("1", warm="other", millicores=0))
    cluster.over("0")
    assert cluster.placement.preferred(wish("2", warm="w")) == first
    assert cluster.ask(wish("2", warm="w")) == first
    assert cluster.placement.preferred(wish("3", warm="unknown", built="unknown")) == ""


def test_the_sandbox_that_was_given_back_last_is_used_first() -> None:
    """Not the one that was taken last: its memory is in caches, and others may end."""
    cluster = Cluster(Machine("a", 1), Machine("b", 1))
    first, second = cluster.ask(wish("0", warm="w")), cluster.ask(wish("1", warm="w"))
    cluster.over("1")
    cluster.over("0")
    assert [cluster.ask(wish("2", warm="w")), cluster.ask(wish("3", warm="w"))] == [first, second]


def test_a_built_environment_is_used_until_its_node_is_nearly_full() -> None:
    """A node that has the environment is better than one with more room, within bounds."""
    cluster = Cluster(Machine("a", 64, 999), Machine("b", 64, 999))
    nodes = [cluster.ask(wish(str(number), built="e")) for number in range(100)]
    first = nodes[0]
    assert nodes[:32] == [first] * 32
    assert set(nodes) == {"a", "b"}


def test_wishes_without_gpus_leave_nodes_with_gpus_to_others() -> None:
    """They go there last; wishes with GPUs are packed, so that whole nodes stay free for large ones."""
    cluster = Cluster(Machine("gpu-1", 64, 999, 4), Machine("gpu-2", 64, 999, 4), Machine("plain", 2))
    assert [cluster.ask(wish(str(number))) for number in range(2)] == ["plain", "plain"]
    assert cluster.ask(wish("third")).startswith("gpu")
    packed = {cluster.ask(wish(f"gpu {number}", type="GPU")) for number in range(4)}
    assert len(packed) == 1
    assert cluster.ask(wish("all", gpus=4)) not in packed


def test_volumes_and_labels_are_demands() -> None:
    """A node without them is not used, however much room it has."""
    near = Machine("near", volumes="shared", labels={"zone": "eu"})
    cluster = Cluster(Machine("far", 64), near)
    assert cluster.ask(wish("0", volumes="shared")) == "near"
    assert cluster.ask(wish("1", labels={"zone": "eu"})) == "near"
    refusal = cluster.placement.refusal
    assert refusal(wish("2", volumes="elsewhere")) == "no machine has the file system that carries its `/data`"
    assert refusal(wish("3", labels={"zone": "us"})) == "no machine has the label `zone=us`"


def test_a_type_is_cut_down_only_where_no_machine_has_it_whole() -> None:
    """As on one machine, a small lab serves a large type with what it has; numbers are refused."""
    cluster = Cluster(Machine("small"))
    assert cluster.ask(wish("0", type="XL")) == "small"
    cluster.over("0")
    assert (
        "takes 8 cores, 0 GiB of memory and no GPUs, and the largest machine has 4 cores"
        in cluster.placement.refusal(wish("1", millicores=8000))
    )
    assert "machine type `GPU` takes" in cluster.placement.refusal(wish("2", type="GPU"))
    cluster.join(Machine("large", 64, 999))
    assert [cluster.ask(wish(f"xl {number}", type="XL")) for number in range(7)] == ["large"] * 7
    assert size_of("XL") == (8000, 128 * GIB, 0)


def test_numbers_that_only_just_fit_are_not_rounded_away() -> None:
    """Many sizes share kinds, rounded up; a whole machine can still be asked for, also when a larger one goes."""
    cluster = Cluster(Machine("a", 7, 15))
    for number in range(MOST_EXACT):
        assert cluster.ask(wish(f"small {number}", millicores=number + 1))
        cluster.over(f"small {number}")
    assert cluster.ask(wish("0", millicores=7000)) == "a"
    cluster.join(Machine("large", 9, 31))
    assert cluster.ask(wish("1", millicores=6999)) == "large"
    assert not cluster.ask(wish("2", millicores=6998))
    cluster.placement.leave("large", 0.0)
    assert cluster.over("0") == ["2"]


# --- nodes that come and go --------------------------------------------------------------------------------------------


def test_a_node_that_is_drained_gets_nothing_more() -> None:
    """Its wishes go on; what waits says so, and is placed when it accepts again."""
    cluster = Cluster(Machine("a"))
    cluster.ask(wish("0"))
    assert not cluster.note(cluster.placement.accept("a", False, 0.0))
    assert not cluster.ask(wish("1"))
    assert cluster.placement.reason("1") == "the machines that can hold it are being drained"
    assert cluster.note(cluster.placement.accept("a", True, 0.0)) == ["1"]


def test_a_node_that_joins_anew_loses_no_place() -> None:
    """Its old link was not noticed as lost: a wish that it held up is placed elsewhere, and is told of."""
    cluster = Cluster(Machine("a", 4, 8), Machine("b", 4, 8))
    for name in ("0", "1"):
        cluster.ask(wish(name, memory_bytes=8 * GIB))
    cluster.ask(wish("2", memory_bytes=8 * GIB))
    (held,) = [row["node"] for row in cluster.placement.nodes() if row["held"]]
    cluster.over(next(name for name, node in cluster.where.items() if node != held), say=False)
    cluster.join(cluster.machines[held])
    assert {one.id for one in cluster.placement.waiting()} | set(cluster.where) >= {"2"}


def test_shares_that_change_while_they_are_told_are_looked_at_again() -> None:
    """A scheduler may answer at once; each wish has one place all the same."""
    share = Share(1)
    cluster = Cluster(Machine("a", 64), Machine("b", 64), placement=Placement(share))
    for number in range(4):
        cluster.ask(wish(f"w{number}", f"user {number}"))
    nested: list[Place] = []

    def more() -> None:
        share.most = 2
        nested.extend(cluster.placement.look(1.0))

    share.on_taken = more
    cluster.over("w0")
    assert not nested
    assert set(cluster.where) == {"w1", "w2", "w3"}


def test_a_wish_may_be_withdrawn_while_another_one_is_served() -> None:
    """Shares that are told of a place may have a server refuse the next wish; the rest is served."""
    share = Share(1)
    cluster = Cluster(Machine("a", 64), placement=Placement(share))
    for number, cores in enumerate((1, 1, 2, 3, 2)):
        cluster.ask(wish(f"w{number}", f"user {number}", millicores=1000 * cores))
    share.on_taken = lambda: cluster.placement.withdraw("w2", 1.0)
    share.most = 4
    cluster.note(cluster.placement.look(1.0))
    assert set(cluster.where) == {"w0", "w1", "w3", "w4"}
    assert not cluster.placement.waiting()


def test_wishes_wait_for_a_node_that_is_away_for_a_moment() -> None:
    """It is not refused until the node has been away for long; then it is to be withdrawn."""
    cluster = Cluster(Machine("plain"), Machine("gpu", gpus=1, cores=8, memory=64))
    asked = wish("0", type="GPU")
    cluster.placement.leave("gpu", 1.0)
    assert not cluster.placement.refusal(asked)
    cluster.placement.ask(asked, 2.0)
    assert cluster.placement.reason("0") == "no machine that can hold it is connected"
    cluster.placement.look(1.0 + AWAY_SECONDS - 0.1)
    assert not cluster.placement.refused()
    cluster.placement.look(1.0 + AWAY_SECONDS)
    ((refused, text),) = cluster.placement.refused()
    assert refused == asked
    assert "1 GPU, and the largest machine has 4 cores, 16 GiB of memory and no GPUs" in text


def test_an_expected_node_counts_as_one_that_is_away() -> None:
    """After a restart of the server, nothing is refused before the nodes had time to join again."""
    cluster = Cluster(Machine("plain"))
    cluster.placement.expect(Machine("gpu", 8, 64, 1).facts, 0.0)
    assert not cluster.placement.refusal(wish("0", type="GPU"))


def test_a_node_has_room_from_its_first_figures_on() -> None:
    """Before them nothing is known of what runs there, also when an older process joins a new server."""
    placement = Placement()
    placement.join(Machine("a").facts, 0.0)
    assert not placement.ask(wish("0"), 0.0)
    assert placement.load("a", NodeLoad(57, {"": 1}, 1000, GIB), 1.0) == [Place(wish("0"), "a")]
    assert not placement.ask(wish("1"), 1.0)
    assert placement.load("a", NodeLoad(57, {"": 1}, 1000, GIB), 1.1) == []
    assert placement.load("a", NodeLoad(58, {"": 1}, 1000, GIB), 1.2) == [Place(wish("1"), "a")]


# --- figures that are late -----------------------------------------------------------------------------------------------


def test_placements_count_until_the_figures_hold_them() -> None:
    """A node with one core gets one wish, however often it repeats its old figures."""
    cluster = Cluster(Machine("a", 1))
    old = cluster.machines["a"].load()
    assert cluster.ask(wish("0"))
    assert not cluster.ask(wish("1"))
    assert not cluster.placement.load("a", old, 0.5)
    cluster.say(cluster.machines["a"])
    assert not cluster.placement.load("a", cluster.machines["a"].load(), 0.6)
    assert cluster.over("0") == ["1"]


def test_a_placement_that_is_over_before_it_arrives_makes_room_at_once() -> None:
    """The node's figures never held it, so the next one need not wait for them."""
    cluster = Cluster(Machine("a", 1))
    cluster.ask(wish("0"))
    assert not cluster.ask(wish("1"))
    assert cluster.over("0", say=False) == ["1"]


def test_a_session_that_never_arrives_costs_no_room_for_long() -> None:
    """Its client had gone: the counts of server and node differ by one from then on, and the room is there again."""
    cluster = Cluster(Machine("a", 1))
    machine = cluster.machines["a"]
    cluster.ask(wish("0"))
    machine.arriving.clear()
    assert cluster.over("0", say=False) == []
    for number in range(1, 4):  # the node's count is one behind
        cluster.now += SETTLED_SECONDS
        cluster.say(machine)
        assert cluster.ask(wish(str(number))) == "a"
        cluster.say(machine)
        cluster.now += SETTLED_SECONDS
        cluster.say(machine)
        cluster.over(str(number))
    assert cluster.ask(wish("lost")) == "a"  # and this one neither arrives nor ends
    machine.arriving.clear()
    cluster.now += SETTLED_SECONDS
    cluster.say(machine)
    assert cluster.ask(wish("next")) == "a"


def test_a_new_process_of_a_node_counts_from_nothing() -> None:
    """Placements that are on their way still count, and later figures are understood."""
    cluster = Cluster(Machine("a", 2))
    machine = cluster.machines["a"]
    for name in ("0", "1"):
        cluster.ask(wish(name))
    cluster.say(machine)
    machine.taken = 0
    machine.running.clear()
    cluster.say(machine)
    assert cluster.ask(wish("2")) == "a"
    assert cluster.ask(wish("3")) == "a"
    assert not cluster.ask(wish("4"))
    machine.taken, machine.running = 0, {}
    assert not cluster.placement.load("a", machine.load(), 0.1)
    assert not cluster.say(machine)
    assert cluster.over("2") == ["4"]


def test_room_of_idle_workers_counts() -> None:
    """A node whose cores idle workers hold says that workers fit, and gets wishes of each type."""
    placement = Placement()
    placement.join(Machine("a", 8).facts, 0.0)
    placement.load("a", NodeLoad(0, {"M": 2, "S": 4, "": 4}, 0, 0), 0.0)
    assert placement.ask(wish("0", type="M"), 0.0)
    assert placement.ask(wish("1", type="S"), 0.0)
    assert placement.ask(wish("2", type="S"), 0.0)
    assert not placement.ask(wish("3", type="M"), 0.0)  # one core is left


# --- who waits, and for how long ----------------------------------------------------------------------------------------


def served(cluster: Cluster) -> str:
    """End the wish that was placed first, and return the one that is placed then."""
    oldest = next(name for name in cluster.order if name in cluster.where)
    (placed,) = cluster.over(oldest)
    return placed


def test_users_take_turns() -> None:
    """A user with many wishes holds up another's first one for one call; places count a user's own."""
    cluster = Cluster(Machine("a", 1))
    for number in range(2000):
        cluster.ask(wish(f"a{number}"))
    cluster.ask(wish("b0", "bob"))
    assert (cluster.placement.position("b0"), cluster.placement.position("a1999")) == (0, 1998)
    assert cluster.placement.reason("a1999") == "every machine is full: 1,998 of your requests before this one"
    assert cluster.placement.reason("b0") == "every machine is full: this is your next request"
    cluster.placement.withdraw("a5", 0.0)
    assert cluster.placement.position("a1999") == 1997
    assert len(cluster.placement.waiting()) == 1999
    assert [served(cluster) for _ in range(4)] == ["a1", "b0", "a2", "a3"]


def test_cores_are_shared_by_weight() -> None:
    """Of nine cores a user with twice the weight gets six, whoever came first."""
    cluster = Cluster(Machine("a", 9, 999))
    cluster.ask(wish("all", millicores=9000))
    for number in range(20):
        cluster.ask(wish(f"b{number}", "bob"))
        cluster.ask(wish(f"c{number}", "cid", weight=2.0))
    placed = cluster.over("all")
    assert Counter(name[0] for name in placed) == {"b": 3, "c": 6}
    assert [name for name in placed if name[0] == "c"] == [f"c{number}" for number in range(6)]


def test_small_wishes_do_not_starve_a_large_one() -> None:
    """One node is kept for it, and drains; the other goes on with the small ones."""
    cluster = Cluster(Machine("a", 4, 99), Machine("b", 4, 99))
    for number in range(8):
        cluster.ask(wish(f"s{number}", "bob"))
    assert not cluster.ask(wish("large", "ann", millicores=4000))
    for number in range(8, 40):
        assert not cluster.ask(wish(f"s{number}", "bob"))
    ended = 0
    while "large" not in cluster.where:
        cluster.over(next(name for name in cluster.order if name in cluster.where))
        ended += 1
    assert ended <= 8
    assert sum(name.startswith("s") for name in cluster.where) == 4


def test_a_wish_that_waits_for_a_gpu_holds_up_no_others() -> None:
    """Wishes that take no GPU pass; those that take one do not, and a large one gets in at last."""
    cluster = Cluster(Machine("a", 16, 200, 2))
    for number in range(2):
        cluster.ask(wish(f"g{number}", "bob", "GPU-T4"))
    assert not cluster.ask(wish("both", "ann", gpus=2))
    assert cluster.ask(wish("plain", "bob")) == "a"
    assert not cluster.ask(wish("g2", "bob", "GPU-T4"))
    assert cluster.over("g0") == []
    assert cluster.over("g1") == ["both"]


def test_a_held_node_is_the_last_that_others_get() -> None:
    """One that waits for memory leaves the cores of its node to others, but better keeps them too."""
    cluster = Cluster(Machine("a", 64, 8), Machine("b", 4, 8))
    for name in ("0", "1"):
        cluster.ask(wish(name, memory_bytes=8 * GIB))
    assert not cluster.ask(wish("large", memory_bytes=8 * GIB))
    (held,) = [row["node"] for row in cluster.placement.nodes() if row["held"]]
    (other,) = {"a", "b"} - {held}
    cores = cluster.machines[other].size.millicores // 1000 - 1
    assert [cluster.ask(wish(f"s{number}")) for number in range(cores)] == [other] * cores
    assert cluster.ask(wish("more")) == held


def test_patience_ends_however_few_cores_the_others_have() -> None:
    """A user with more cores than the others comes later in turn, and yet gets a large wish in."""
    cluster = Cluster(Machine("a", 8, 99))
    cluster.ask(wish("held", "ann", millicores=4000))
    count = 0

    def busy() -> None:
        nonlocal count
        while cluster.ask(wish(f"s{count}", f"user {count}")):
            count += 1
        count += 1

    busy()
    assert not cluster.ask(wish("large", "ann", millicores=4000))
    for _ in range(20):
        assert cluster.over(next(name for name in cluster.where if name[0] == "s")) != ["large"]
        busy()
    cluster.now = PATIENCE_SECONDS
    cluster.note(cluster.placement.look(cluster.now))
    for _ in range(3):
        assert not cluster.over(next(name for name in cluster.where if name[0] == "s"))
    assert cluster.over(next(name for name in cluster.where if name[0] == "s")) == ["large"]


def test_more_nodes_are_kept_for_a_wish_that_waits_on() -> None:
    """The calls on the first held node may never end: each patience adds one more node."""
    cluster = Cluster(*(Machine(name, 2, 99) for name in "abc"))
    for number in range(6):
        cluster.ask(wish(f"s{number}", "bob"))
    cluster.ask(wish("large", millicores=2000))
    for expected in (1, 2, 3, 3):
        assert sum(row["held"] for row in cluster.placement.nodes()) == expected
        cluster.now += PATIENCE_SECONDS
        cluster.note(cluster.placement.look(cluster.now))
    cluster.placement.withdraw("large", cluster.now)
    assert not any(row["held"] for row in cluster.placement.nodes())


def test_a_wish_is_asked_once() -> None:
    """A second time is a mistake of the caller; after its end the id is free."""
    cluster = Cluster(Machine("a"))
    cluster.ask(wish("0"))
    with pytest.raises(ValueError, match="asked twice"):
        cluster.ask(wish("0"))
    cluster.over("0")
    assert cluster.ask(wish("0")) == "a"
    assert not cluster.placement.over("unknown", 0.0)


# --- shares of another scheduler ----------------------------------------------------------------------------------------


class Share(Shares):
    """So many wishes for each node."""

    def __init__(self, most: int) -> None:
        self.on_change = lambda: None
        self.on_taken: Callable[[], object] = lambda: None
        self.most = most
        self.used: Counter[str] = Counter()
        self.told: list[list[str]] = []
        self.asked = 0

    def room(self, node: str, wish: Wish) -> bool:
        self.asked += 1
        return self.used[node] < self.most

    def taken(self, place: Place) -> None:
        self.used[place.node] += 1
        self.on_taken()

    def given_back(self, place: Place) -> None:
        self.used[place.node] -= 1

    def wanted(self, wishes: Sequence[Wish]) -> None:
        self.told.append([one.id for one in wishes])

    def refusal(self, wish: Wish) -> str:
        return "no machine can be had" if wish.gpus else ""


def test_shares_bound_what_nodes_get() -> None:
    """A node within its room but over its share gets nothing; the scheduler hears of those that wait."""
    share = Share(1)
    cluster = Cluster(*(Machine(f"n{number}", 64) for number in range(50)), placement=Placement(share))
    assert len({cluster.ask(wish(f"w{number}")) for number in range(50)}) == 50
    assert not cluster.ask(wish("x"))
    assert share.told == [["x"]]
    assert cluster.placement.reason("x") == "the share of every machine is used: this is your next request"
    before = share.asked
    cluster.ask(wish("y"))
    assert share.asked == before  # refused shares are not asked again before they change
    assert cluster.over("w0") == ["x"]
    share.most = 2
    assert cluster.note(cluster.placement.look(2.0)) == ["y"]
    assert share.told[-1] == []
    assert cluster.placement.refusal(wish("z", gpus=1)) == "no machine can be had"


# --- leases that are asked back -------------------------------------------------------------------------------------------


def later(cluster: Cluster, seconds: float) -> None:
    """Let time pass, and the placement look."""
    cluster.now += seconds
    cluster.placement.look(cluster.now)


def test_leases_are_asked_back_where_others_wait() -> None:
    """Of the nodes that are held, after a moment, and not where the waiting program itself has all of them."""
    cluster = Cluster(Machine("a", 1), Machine("b", 1))
    for number in range(2):
        cluster.ask(wish(f"busy {number}", program="busy"))
    assert not cluster.placement.crowded(cluster.now)
    cluster.ask(wish("same", program="busy"))
    later(cluster, 1.0)
    assert not cluster.placement.crowded(cluster.now)
    cluster.placement.withdraw("same", cluster.now)
    cluster.ask(wish("other", program="other"))
    assert not cluster.placement.crowded(cluster.now)
    later(cluster, 1.0)
    (node,) = cluster.placement.crowded(cluster.now)
    assert node in {"a", "b"}
    later(cluster, PATIENCE_SECONDS)
    assert sorted(cluster.placement.crowded(cluster.now)) == ["a", "b"]
    cluster.over("busy 0")
    assert not cluster.placement.crowded(cluster.now)


def test_a_node_whose_lines_are_unknown_is_asked() -> None:
    """After the server began anew it has lines of nodes whose programs it does not know."""
    machine = Machine("a", 1)
    machine.running["unknown"] = wish("unknown")
    cluster = Cluster(machine)
    cluster.ask(wish("other", program="other"))
    later(cluster, 1.0)
    assert cluster.placement.crowded(cluster.now) == ["a"]
