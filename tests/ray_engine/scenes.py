"""Scenes: what a server does with a Ray cluster, each played by a process on a stage: `scenes.py NAME`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from atoll import errors
from atoll.server.cluster.contract import LOCAL, NodeFacts, Place, Wish
from atoll.server.ray.amounts import Amount
from atoll.server.ray.fleet import Invitation, RayFleet
from atoll.server.ray.ledger import NodeType
from atoll.server.ray.options import RayOptions
from atoll.server.ray.part import open_engine
from atoll.server.ray.settling import Rules
from atoll.server.ray.shares import RayShares, Share

STAGE = Path(os.environ["STAGE"])
ADDRESS = os.environ.get("ADDRESS", "127.0.0.1:6379")
PATIENCE_SECONDS = 60.0
FAKE = (sys.executable, str(Path(__file__).with_name("fake_atoll.py")))
CARDS = ("nvidia0", "nvidia1")
CERTIFICATES = "certificates\n" * 10_000


async def until(condition: Callable[[], object], why: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, why
        await asyncio.sleep(0.02)


async def invite() -> Invitation:
    return Invitation("http://server.example", "join-token", CERTIFICATES)


@contextlib.asynccontextmanager
async def engine(**changed: Any) -> AsyncIterator[tuple[RayShares, RayFleet]]:
    """Open the engine as a server does, and have the nodes of all machines join."""
    rules = {"warm": {}, "idle_seconds": 0.5, "turn_seconds": 0.0, **changed.pop("rules", {})}
    options = RayOptions(
        **{"address": ADDRESS, "home": str(STAGE / "{name}"), "program": FAKE, "rules": Rules(**rules), **changed}
    )
    async with open_engine(options, invite=invite, log=STAGE / "driver.log") as (shares, fleet):
        await until(lambda: shares.ledger.nodes, "no nodes")
        yield shares, fleet


def machine(shares: RayShares, zone: str) -> str:
    """Return the Ray node of a zone."""
    return next(one.id for one in shares.ledger.nodes.values() if one.labels.get("zone") == zone)


def join(shares: RayShares, zone: str) -> None:
    cards = CARDS if zone == "a" else ()
    shares.joined(NodeFacts(zone, gpus=cards, labels={"ray": machine(shares, zone), "zone": zone}))


def processes(*words: bytes) -> list[int]:
    """Return the pids of processes whose command line has all these words."""
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit():
                line = (process / "cmdline").read_bytes()
                if all(word in line for word in words):
                    found.append(int(process.name))
    return found


def holders() -> set[int]:
    """Return the pids of the holders that live on the stage."""
    return set(processes(b"ray::Holder"))


def other_program(source: str) -> subprocess.Popen[str]:
    """Start another program of the cluster's; it prints."""
    begin = f"import ray, sys; ray.init('{ADDRESS}', namespace='other', log_to_driver=False, logging_level='error')\n"
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", begin + source], stdout=subprocess.PIPE, text=True)


async def said(program: subprocess.Popen[str]) -> str:
    assert program.stdout is not None
    return (await asyncio.to_thread(program.stdout.readline)).strip()


# --- scenes -----------------------------------------------------------------------------------------------------------


async def lends() -> None:
    """Wishes are refused or met by holders, as labels and affinity say; GPUs have ids; idle holders go back."""
    async with engine() as (shares, _):
        join(shares, "a")
        join(shares, "b")
        assert shares.refusal(Wish("1", "u", gpus=2)) == ""
        assert "needs 1 CPUs, 3 GPUs, and the largest" in shares.refusal(Wish("2", "u", gpus=3))
        assert "no machine of the Ray cluster has the labels `zone=c`" in shares.refusal(
            Wish("3", "u", labels={"zone": "c"})
        )
        assert "and the largest" in shares.refusal(Wish("4", "u", gpus=1, labels={"zone": "b"}))
        there = Wish("5", "u", labels={"zone": "b"})
        shares.wanted([there])
        await until(lambda: shares.room("b", there), "no room")
        assert shares.share("a").millicores == 0
        shares.preferred = lambda _: "a"
        shares.wanted([Wish("6", "u", millicores=1500)])
        await until(lambda: shares.share("a").millicores == 1500, "not where it is warm")
        shares.wanted([])
        await until(lambda: not holders(), "holders live")
        shares.preferred = lambda _: "b"
        first, second = Wish("7", "u", millicores=2000), Wish("8", "u", millicores=2000)
        shares.wanted([first])
        await until(lambda: shares.room("b", first), "not where it is warm")
        shares.taken(Place(first, "b"))
        shares.wanted([second])
        await until(lambda: shares.room("a", second), "it waits for a machine that is busy")
        shares.given_back(Place(first, "b"))
        shares.wanted([])
        await until(lambda: not holders(), "holders live")
        shares.preferred = lambda _: ""
        one, two = Wish("1", "u", gpus=1, memory_bytes=1 << 28), Wish("2", "u", gpus=1)
        assert not shares.room("a", one)
        shares.wanted([one, two])
        await until(lambda: len(shares.gpus("a")) == 2, "no GPUs")
        assert shares.gpus("a") == CARDS
        assert shares.share("a") == Share(2000, 1 << 28, CARDS)
        assert shares.room("a", one)
        assert not shares.room("b", one)
        shares.taken(Place(one, "a"))
        shares.taken(Place(two, "a"))
        assert not shares.room("a", Wish("3", "u", gpus=1))
        shares.wanted([])
        free = await asyncio.to_thread(subprocess.check_output, [sys.executable, "-c", FREE], text=True)
        assert json.loads(free) == {"CPU": 5.0, "GPU": 0.0}, free
        shares.given_back(Place(one, "a"))
        shares.given_back(Place(two, "a"))
        await until(lambda: shares.share("a") == Share(0, 0, ()), "not given back")
        await until(lambda: not holders(), "holders live")


FREE = f"""
import json, ray
ray.init('{ADDRESS}', log_to_driver=False, logging_level='error')
free = ray.available_resources()
print(json.dumps({{name: free.get(name, 0.0) for name in ("CPU", "GPU")}}))
"""


async def shares_fairly() -> None:
    """What another program waits for is given back as calls end, though Atoll's own queue would use it."""
    async with engine() as (shares, _):
        join(shares, "a")
        join(shares, "b")
        wishes = [Wish(str(number), "u", millicores=2000) for number in range(4)]
        shares.wanted(wishes[:3])
        await until(lambda: shares.share("a").millicores + shares.share("b").millicores == 6000, "no shares")
        places = [Place(wish, node) for wish, node in zip(wishes, ["a", "a", "b"], strict=False)]
        for place in places:
            shares.taken(place)
        shares.wanted(wishes[3:])
        program = other_program(
            "@ray.remote(num_cpus=2, resources={'b': 1})\n"
            "def work():\n    return 'done'\n"
            "print(ray.get(work.remote()), flush=True); sys.stdin.readline()"
        )
        await until(lambda: shares.ledger.others_wait, "the other program is not seen")
        shares.given_back(places[2])
        assert not shares.room("b", wishes[3])
        assert await said(program) == "done"
        program.kill()
        program.wait()
        assert shares.room("a", wishes[0]) is False
        await until(lambda: shares.room("b", wishes[3]), "the queue did not come after it")
        for place in places[:2]:
            shares.given_back(place)
        shares.wanted([])
        await until(lambda: not holders(), "holders live")


async def survives() -> None:
    """A killed driver costs nothing: shares stay, the next one finds the same holders, and none is doubled."""
    async with engine(rules={"idle_seconds": 3600.0}) as (shares, _):
        join(shares, "a")
        wish, later = Wish("1", "u", gpus=1), Wish("2", "u", millicores=4000)
        shares.wanted([wish, later])  # the second waits: nobody has that much free
        await until(lambda: shares.room("a", wish), "no room")
        before = holders()
        (driver,) = processes(b"atoll.server.ray.driver")
        gone = asyncio.get_running_loop().time()
        os.kill(driver, signal.SIGKILL)
        shares.taken(Place(wish, "a"))
        assert not shares.room("a", wish)
        shares.given_back(Place(wish, "a"))
        assert shares.room("a", wish)
        third = Wish("3", "u")
        shares.wanted([wish, later, third])
        await until(lambda: shares.share("a").millicores + shares.share(LOCAL).millicores >= 2000, "no new driver")
        assert asyncio.get_running_loop().time() > gone
        assert before <= holders()
        assert len(holders()) == 2
    async with engine(rules={"idle_seconds": 1.0}) as (
        shares,
        _,
    ):  # another server takes them over, and gives them back
        await until(lambda: shares.ledger.holders, "not found")
        join(shares, "a")
        assert shares.room("a", wish)
        await until(lambda: not holders(), "holders live")


async def serves() -> None:
    """A server runs a program's calls on the cluster's machines, which it has join by itself."""
    await stop_machines()
    STAGE.chmod(0o755)  # functions have uids of their own
    home, key = STAGE / "server", {}
    home.mkdir(mode=0o700)
    (home / "settings.toml").write_text(
        f'[cluster]\nown_data = true\nurl = "{SERVER}"\n[ray]\nhome = "{STAGE}/real-{{name}}"\nidle_seconds = 1.0\n'
    )
    (STAGE / "program.py").write_text(PROGRAM)
    atoll = [sys.executable, "-W", "ignore", "-c", "from atoll.cli.main import main; main()"]
    options = ["--engine", "ray", "--ray-address", ADDRESS, "--no-local", "--listen", SERVER.removeprefix("http://")]
    with (STAGE / "server.log").open("w") as log:
        server = subprocess.Popen([*atoll, "server", *options, "--home", str(home)], stdout=log, stderr=log)  # noqa: ASYNC220
    try:
        await until(lambda: "listening on" in (STAGE / "server.log").read_text(), "no server")
        added = await said_by([*atoll, "users", "add", "ada", "--operator", "--home", str(home)])
        key = dict(re.findall(r"(ATOLL_KEY_\w+)='([^']+)'", added))
        printed = await said_by(
            [sys.executable, str(STAGE / "program.py")],
            {**key, "ATOLL_HOST": SERVER, "ATOLL_HOME": str(STAGE / "client")},
        )
        assert printed.splitlines()[-1] == "[0, 1, 4, 9] 25", printed
        listed = json.loads(await said_by([*atoll, "nodes", "list", "--json", "--home", str(home)]))
        assert {node["labels"].get("zone") for node in listed} >= {"a", "b"}, listed
    finally:
        server.terminate()
        server.wait()
    await stop_machines()
    assert not processes(b"node\0run")


SERVER = "http://127.0.0.1:8080"
PROGRAM = """
from atoll import cloud, isolated


@isolated(requirements=[], network="none")
def square(number):
    return number * number


@isolated(requirements=[], network="none", machine_type="XS")
def small(number):
    return number * number


print(list(square.on(cloud).map(range(4))), small.on(cloud)(5))
"""


async def said_by(argv: list[str], variables: dict[str, str] | None = None) -> str:
    """Run a program to its end; return what it printed."""
    program = await asyncio.create_subprocess_exec(
        *argv, env={**os.environ, **(variables or {})}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output = (await program.communicate())[0].decode()
    assert program.returncode == 0, output
    return output


async def stop_machines() -> None:
    """End the processes of all machines."""
    async with engine() as (_, fleet):
        for row in await fleet.machines():
            await fleet.stop(row["machine"])


async def loses() -> None:
    """A machine's end is the end of its holders and of all that its actor started; both are noted."""
    async with engine() as (shares, fleet):
        join(shares, "b")
        wish = Wish("1", "u", labels={"zone": "b"})
        shares.wanted([wish])
        await until(lambda: shares.room("b", wish), "no room")
        shares.taken(Place(wish, "b"))
        lost = machine(shares, "b")
        rows = {row["machine"]: row for row in await fleet.machines()}
        assert rows[lost]["node"] == "b"
        pids = await pids_of(await home_of(lost), [])
        (raylet,) = processes(b"raylet/raylet", b'"zone"', b'"b"')
        os.kill(raylet, signal.SIGKILL)
        await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the member or its daemon lives")
        await until(lambda: lost not in shares.ledger.nodes, "the machine is not gone")
        assert not shares.room("b", wish)
        assert shares.share("b").millicores == 0
        shares.given_back(Place(wish, "b"))
        assert "labels" in shares.refusal(wish)


async def watches() -> None:
    """A machine's process knows nothing of Ray, is started again when it ends, and leaves nothing when it is stopped."""
    async with engine() as (shares, fleet):
        node = machine(shares, "a")
        home = await home_of(node)
        first = await pids_of(home, [])
        variables = json.loads((home / "environment.json").read_text())
        assert not [name for name in variables if name.startswith(("RAY", "CUDA"))], variables
        assert not [value for value in variables.values() if "aaaaaaaa" in value]
        joins = [json.loads(line) for line in (home / "joins").read_text().splitlines()]
        assert len(joins) == 1
        assert joins[0][:3] == ["node", "join", "http://server.example"]
        assert f"ray={node}" in joins[0]
        assert "zone=a" in joins[0]
        assert variables["ATOLL_JOIN_TOKEN"] == "join-token"
        assert joins[0][-3:] == ["--ca-file", "-", CERTIFICATES]
        os.kill(first[0], signal.SIGKILL)
        second = await pids_of(home, first)
        for actor in processes(b"ray::Machine"):
            os.kill(actor, signal.SIGKILL)
        third = await pids_of(home, second)
        left = [pid for pid in [*first, *second] if Path(f"/proc/{pid}").exists()]
        assert not left, (first, second, third, left)
        assert len((home / "joins").read_text().splitlines()) == 1
        await fleet.stop(node)
        assert not any(Path(f"/proc/{pid}").exists() for pid in third)
        await fleet.start(node)
        fourth = await pids_of(home, third)
        (home / "removed").touch()  # the server has removed the node: its process ends with status 3
        os.kill(fourth[0], signal.SIGKILL)
        await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in fourth), "a removed node lives")
        while "stopped" not in [row["process"] for row in await fleet.machines()]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        (home / "removed").unlink()


async def home_of(node: str) -> Path:
    """Wait for a machine's process; return its state directory."""
    await until(lambda: list(STAGE.glob(f"*-{node[:8]}/environment.json")), "no member")
    return next(STAGE.glob(f"*-{node[:8]}"))


async def pids_of(home: Path, before: list[int]) -> list[int]:
    """Wait for a new process and its daemon; return their pids."""

    def found() -> list[int]:
        with contextlib.suppress(OSError):
            pids = [int(pid) for pid in (home / "pids").read_text().split()]
            return pids if all(Path(f"/proc/{pid}").exists() for pid in pids) else []
        return []

    try:
        await until(lambda: len(found()) == 2 and found() != before, "no new member")
    except AssertionError as error:
        kept = {one.name: one.read_text()[-200:] for one in home.iterdir() if one.name in ("pids", "joins", "ray-node")}
        alive = {word: processes(word.encode()) for word in ("ray::Machine", "atoll.server.ray.guard", "fake_atoll")}
        raise AssertionError(f"{error}: {home.name} has {kept}, of processes there are {alive}") from error
    return found()


async def restarts_head() -> None:
    """A killed head that has kept its state comes back: holders and members are the same, shares stay meanwhile."""
    async with engine(rules={"idle_seconds": 3600.0}) as (shares, _):
        join(shares, "a")
        wish = Wish("1", "u", gpus=1)
        shares.wanted([wish])
        await until(lambda: shares.room("a", wish), "no room")
        shares.wanted([])
        before, members = holders(), await pids_of(await home_of(machine(shares, "a")), [])
        (first,) = {*processes(b"raylet/raylet")} - {*processes(b"raylet/raylet", b"plasma_store.")}
        for pid in [first, *processes(b"gcs_server"), *processes(b"monitor.py")]:
            os.kill(pid, signal.SIGKILL)
        shares.taken(Place(wish, "a"))
        assert not shares.room("a", wish)
        shares.given_back(Place(wish, "a"))
        # Beside nodes of the same cluster `ray start --head` refuses: processes of its own hide them.
        head = f"ray start --head {os.environ['HEAD']} && sleep infinity"
        inside = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-c", head]
        nowhere = subprocess.DEVNULL
        with subprocess.Popen(inside, stdin=nowhere, stdout=nowhere, stderr=nowhere) as program:  # noqa: ASYNC220
            later = Wish("2", "u", labels={"zone": "a"})
            shares.wanted([later])
            await until(lambda: shares.share("a").millicores == 2000, "nothing is lent after the head's restart")
            assert before < holders()
            assert all(Path(f"/proc/{pid}").exists() for pid in members)
            program.kill()


async def grows() -> None:
    """Demand that waits has the autoscaler add a machine, on which it finds its place; an idle one goes again."""
    with contextlib.suppress(errors.StateUntrusted):
        async with engine():
            raise AssertionError("a cluster that anyone may command was used")
    types = [NodeType(Amount(2000, 1 << 40))]
    async with engine(open=True, types=types, rest_seconds=1.0) as (shares, _):
        assert "largest" in shares.refusal(Wish("0", "u", millicores=3000))
        wish = Wish("1", "u", millicores=2000)
        assert shares.refusal(wish) == ""
        assert len(shares.ledger.nodes) == 1
        assert shares.ledger.scales
        shares.wanted([wish])
        await until(lambda: len(shares.ledger.nodes) == 2, "no machine was added")
        new = next(node for node in shares.ledger.nodes if node != shares.ledger.ray_of(LOCAL))
        shares.joined(NodeFacts("new", labels={"ray": new}))
        await until(lambda: shares.room("new", wish), "no room on the new machine")
        shares.taken(Place(wish, "new"))
        shares.wanted([])
        shares.given_back(Place(wish, "new"))
        await until(lambda: len(shares.ledger.nodes) == 1, "the idle machine stays")


SCENES = (lends, shares_fairly, survives, watches, serves, loses, restarts_head, grows)

if __name__ == "__main__":
    asyncio.run(next(scene for scene in SCENES if scene.__name__ == sys.argv[1])())
