"""A function with `results="data"` never reaches code whose results its caller unpickles, now or later."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import pickle
import traceback
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll import errors, isolated
from atoll.environments.built import preloads
from atoll.host.default import default_host
from atoll.payload import answers, exceptions_dump, untrusted
from atoll.sdk import run_by_name
from tests.conftest import Home

from ..waiting import until

pytestmark = pytest.mark.as_user


class Planted:
    """Makes a file in the process that unpickles it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def plant(path: str) -> str:
    """Have this worker answer with a planted pickle from now on, whenever its caller unpickles."""
    from atoll.payload import values

    dumps = values.dumps_answer

    def dumps_planted(value: Any, plain: bool = False) -> list[Any]:
        return dumps(value, plain) if plain else [pickle.dumps(Planted(path))]

    values.dumps_answer = dumps_planted
    return "harmless"


def sandbox() -> str:
    """Return the name of the sandbox in which this runs."""
    return os.readlink("/proc/self/ns/pid")


def called(results: Any, case: str = "") -> Callable[[Any], Any]:
    """Return a decorator; functions of one case share workers where they may, and each leaves its worker as it is."""
    return isolated(network="none", keep_alive=60, local_modules=[], env={"CASE": case}, results=results)


def plant_by_calling(path: str) -> str:
    """Have the worker of an ordinary call of this environment do so."""
    from atoll.host.local import local

    with contextlib.suppress(Exception):  # the planted pickle is unpickled here
        called("pickle", path)(plant)(path)
    local.close()  # the worker is free for the program's next call
    return "harmless"


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[str]:
    """The path of a directory that only a planted pickle makes."""
    path = tmp_path / "unpickled"
    yield str(path)
    assert not path.exists(), "the caller has unpickled what a distrusted function chose"


@pytest.mark.usefixtures("one_machine")
@pytest.mark.parametrize("attack", [plant, plant_by_calling])
def test_a_patched_worker_serves_no_ordinary_call(attack: Callable[[str], str], trap: str) -> None:
    """Neither when the hostile function was called itself, nor when it calls its code with ordinary results."""
    assert called("data", trap)(attack)(trap) == "harmless"
    assert called("pickle", trap)(abs)(-3) == 3


def test_a_patched_worker_serves_no_ordinary_call_of_another_program(one_machine: Home, trap: str) -> None:
    """The worker outlives the program that called the hostile function."""
    program = f"from {__name__} import *; called('data', {trap!r})(plant)({trap!r})"
    one_machine.python("-c", program, cwd=Path(__file__).parents[2])
    assert called("pickle", trap)(abs)(-3) == 3


# --- the memory of another worker ---------------------------------------------------------------------------------


def keep(marker: str) -> int:
    """Keep a text in this worker's memory."""
    import builtins

    builtins.kept = marker * 100  # type: ignore[attr-defined]
    return os.getpid()


def search(*parts: str) -> list[str]:
    """Return the processes whose memory this one can read and which keep the text of these parts."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) == os.getpid():
            continue
        try:
            with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
                for line in maps:
                    span, rights = line.split()[:2]
                    begin, end = (int(part, 16) for part in span.split("-"))
                    if (rights.startswith("rw") and not line.rstrip().endswith("]")) or "[heap]" in line:
                        memory.seek(begin)
                        if (parts[0] + parts[1]).encode() * 2 in memory.read(end - begin):
                            found.append(pid)
                            break
        except OSError:
            continue
    return found


@pytest.mark.usefixtures("one_machine")
def test_no_memory_of_a_trusted_worker_is_in_reach() -> None:
    """Another worker of a hostile function, with other variables, does not see the trusted ones."""
    assert called("pickle")(keep)("a marker " + "of the trusted worker")
    assert called("data", "another worker")(search)("a marker ", "of the trusted worker") == []


# --- trust goes with each call ------------------------------------------------------------------------------------


def sandboxes() -> Iterator[str]:
    yield sandbox()


def first(value: str, *_: int) -> str:
    return value


def sandbox_of(_: int, *__: int) -> str:
    return sandbox()


def sandboxes_by_way(results: Any, directory: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Return the sandbox that runs a call, for each way to call a function."""
    call: Callable[[Any], Any] = isolated(network="none", keep_alive=60, results=results)
    file = directory / "named.py"
    file.write_text("import os\ndef sandbox():\n    return os.readlink('/proc/self/ns/pid')\n")
    run_by_name.run(call(sandbox), "named", str(file), "sandbox", (), {})
    return {
        "call": call(sandbox)(),
        "by name": capsys.readouterr().out.strip(),
        "submit": call(sandbox).submit().result(),
        "map": "".join(set(call(sandbox_of).map(range(4)))),
        "starmap": "".join(set(call(sandbox_of).starmap([(1, 2), (3, 4)]))),
        "generator": "".join(call(sandboxes)()),
        "aio": asyncio.run(call(sandbox).aio()),
        "on": isolated(sandbox).on(network="none", results=results)(),
        "setup_function": call(first).on(setup_function=sandbox)(),
        "retries": call(sandbox).on(retries=2)(),
    }


@pytest.mark.usefixtures("one_machine")
def test_each_way_to_call_keeps_to_its_trust(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All calls with ordinary results share one sandbox, all with plain data another."""
    (trusted,) = set(sandboxes_by_way("pickle", tmp_path, capsys).values())
    (other,) = set(sandboxes_by_way("data", tmp_path, capsys).values())
    assert trusted != other


def call_within(chain: list[Any]) -> str:
    """Call with the first kind of results a function that does so with the next; return the last one's sandbox."""
    if not chain:
        return sandbox()
    return str(isolated(network="none", keep_alive=60, results=chain[0])(call_within)(chain[1:]))


@pytest.mark.usefixtures("one_machine")
@pytest.mark.parametrize(
    ("chain", "trusted"),
    [("pp", True), ("pd", False), ("dp", False), ("dd", False), ("pdp", False), ("dpp", False), ("ppp", True)],
)
def test_nested_calls_are_trusted_at_most_like_their_caller(chain: str, trusted: bool) -> None:
    """The daemon decides, from the sandbox that asks: `p` calls for a pickle, `d` for plain data."""
    kinds = ["pickle" if letter == "p" else "data" for letter in chain]
    found = call_within(kinds)
    assert [found == called(results)(sandbox)() for results in ("pickle", "data")] == [trusted, not trusted]


@pytest.mark.usefixtures("one_machine")
def test_ordinary_calls_alone_have_one_sandbox() -> None:
    """Functions, generators and nested calls share it as before; `status` names the results of each sandbox."""

    def sandboxes_now() -> dict[str, str]:
        return {one["id"]: one["results"] for one in default_host().request("status", {})["sandboxes"]}

    def nest() -> str:
        return str(isolated(network="none", preload=["nest"])(sandbox)())

    before = sandboxes_now()
    mine = isolated(network="none", preload=["nest"], keep_alive=60)
    assert mine(nest)() == mine(sandbox)() == "".join(mine(sandboxes)())
    assert [results for name, results in sandboxes_now().items() if name not in before] == ["pickle"]


# --- exceptions ---------------------------------------------------------------------------------------------------


def through(header: dict[str, Any], buffers: list[Any]) -> BaseException:
    """Return the exception that a caller makes of a worker's description."""
    return untrusted.loads_exception(json.loads(json.dumps(header)), [bytearray(one) for one in buffers])


def levels(count: int) -> tuple[dict[str, Any], list[Any]]:
    """Return the description of groups in groups, each of which has the next one as its member."""
    exc: Exception = ValueError("x")
    for _ in range(count):
        exc = ExceptionGroup("g", [exc])
    return exceptions_dump.dumps(exc, plain=True)


def test_an_exception_is_in_no_two_places() -> None:
    """Else a few groups whose members are shared would be printed as billions."""
    header, buffers = levels(9)
    found = through(header, buffers)
    assert "".join(traceback.format_exception(found)).count("ValueError") == 1
    for members in ([5] * 3, [6]):
        header["exceptions"][4]["members"] = members
        with pytest.raises(ValueError, match="more than once"):
            through(header, buffers)


def test_an_honest_group_with_one_exception_in_two_places_arrives() -> None:
    """Each place has an exception of its own, up to the number that a caller takes."""
    once = KeyError("k")
    once.__cause__ = OSError(2, "o")
    pair = ExceptionGroup("pair", [once, once])
    found = through(*exceptions_dump.dumps(ExceptionGroup("outer", [pair, once, pair]), plain=True))
    assert isinstance(found, ExceptionGroup)
    first, second, third = found.exceptions
    assert [str(exc) for exc in (*first.exceptions, second, *third.exceptions)] == ["'k'"] * 5
    assert type(second.__cause__) is FileNotFoundError
    large: Exception = once
    for _ in range(40):
        large = ExceptionGroup("g", [large] * 3)
    printed = "".join(traceback.format_exception(through(*exceptions_dump.dumps(large, plain=True))))
    assert printed.count("ExceptionGroup: ") < 2 * untrusted.MOST_NODES


def test_the_member_of_a_group_that_was_handled_is_in_it() -> None:
    """A member that is raised again has its group as context, and is in that group too."""
    member = KeyError("k")
    try:
        try:
            raise ExceptionGroup("g", [member])
        except ExceptionGroup:
            raise member from None
    except KeyError as raised:
        found = through(*exceptions_dump.dumps(raised, plain=True))
    assert isinstance(found.__context__, ExceptionGroup)
    assert [str(exc) for exc in found.__context__.exceptions] == ["'k'"]


# --- what an environment learns -----------------------------------------------------------------------------------


def wheel(directory: Path) -> str:
    """Make a wheel of two modules; return its path."""
    path = directory / "learned-1-py3-none-any.whl"
    about = "learned-1.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("hostile_module", "harmless_module"):
            archive.writestr(f"{name}.py", "")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: learned\nVersion: 1\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return str(path)


def import_module(name: str) -> list[str]:
    """Import a module; return those of the wheel that this worker had imported already."""
    import importlib
    import sys

    found: list[str] = [one for one in ("hostile_module", "harmless_module") if one in sys.modules]
    importlib.import_module(name)
    return found


def test_no_hostile_function_decides_what_trusted_workers_import(atoll_home: Home, tmp_path: Path) -> None:
    """An import is code of the package that runs: sandboxes of each trust learn from their own calls only."""
    call = isolated(requirements=[wheel(tmp_path)], network="none", keep_alive=0)(import_module)
    cases: list[tuple[Any, str]] = [("data", "hostile_module"), ("pickle", "harmless_module")]
    for results, name in cases:
        mine = call.on(results=results)
        staying = mine.on(keep_alive=600, env={"KEEPS": "the sandbox"})
        staying(name)
        assert until(functools.partial(mine, name)) == [name]


def test_a_list_that_was_learned_from_all_functions_counts_for_none(tmp_path: Path) -> None:
    """Earlier versions kept one list, which a hostile function may have filled."""
    learned = {"modules": ["hostile_module"], "implied": [], "refused": {}}
    (tmp_path / "preload.json").write_text(json.dumps(learned))
    assert preloads.read(tmp_path, trusted=True) == preloads.Preloads()
    preloads.write(tmp_path, preloads.Preloads(("mine",)), trusted=True)
    preloads.write(tmp_path, preloads.Preloads(("other",)), trusted=False)
    assert preloads.read(tmp_path, trusted=True).modules == ("mine",)
    (tmp_path / "preload-data.json").rename(tmp_path / "preload.json")
    assert preloads.read(tmp_path, trusted=True) == preloads.Preloads()


# --- the network --------------------------------------------------------------------------------------------------


def network() -> str:
    """Return the name of the network in which this runs."""
    return os.readlink("/proc/self/ns/net")


@pytest.mark.usefixtures("one_machine")
def test_trusted_functions_share_no_loopback_device_with_others() -> None:
    """A server of a trusted function, which may unpickle, is out of a hostile function's reach."""
    try:
        trusted, other = (isolated(network="outbound", results=results)(network)() for results in ("pickle", "data"))
    except errors.SandboxUnavailable:
        pytest.skip("needs `pasta`")
    assert trusted != other


def ask_for_names(secret: str) -> Any:
    """Ask the caller for a name of its program, as the worker's own code never does for this kind of function."""
    import gc

    from atoll.agent.questions import Questions

    (questions,) = (one for one in gc.get_objects() if isinstance(one, Questions))
    questions._refused = ""
    return questions.value("__main__", secret)


@pytest.mark.usefixtures("one_machine")
def test_a_distrusted_function_gets_no_name_by_question() -> None:
    """A worker of plain data that asks for a name of the caller's program is ended; the next call works."""
    with pytest.raises(errors.ProtocolMismatch):
        called("data", "names")(ask_for_names)("__name__")
    assert called("data", "names")(sandbox)().startswith("pid:")


def test_a_function_gets_names_of_its_own_modules_only() -> None:
    """A module that the function does not travel with gives no names."""
    names = answers.Names(frozenset({__name__}), None)
    assert "missing" in names.answer({"module": "os", "name": "environ"})[0]
    assert "missing" in names.answer({"module": ["__main__"], "name": "x"})[0]
    assert "missing" in names.answer({"module": "os", "snapshot": True})[0]
    assert "missing" not in names.answer({"module": __name__, "name": "called"})[0]
