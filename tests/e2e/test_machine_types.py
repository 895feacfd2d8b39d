"""Machine types, limits and placing, with a real daemon and real sandboxes."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll import errors, isolated
from atoll.sandbox.limits.limits import Limits
from atoll.server.node import Node
from atoll.settings import Settings, load

from ..conftest import Home
from ..waiting import until


@pytest.fixture(scope="module")
def kernel() -> frozenset[str]:
    """What the kernel limits for this user."""
    path = Path(f"/tmp/atoll-limits-{os.getpid()}")
    limits = Limits(Settings(path))
    found = limits.controllers
    limits.close()
    return found


@isolated(machine_type="XS", keep_alive=30)
def take(mebibytes: int) -> int:
    """Take memory as fast as it can be taken."""
    return len(bytearray(b"x") * (mebibytes << 20))


def settings(home: Home, text: str) -> None:
    (home.path / "settings.toml").write_text(text)


@pytest.mark.as_user
def test_a_function_that_takes_memory_at_once_gets_out_of_memory(atoll_home: Home) -> None:
    """XS has 256 MB from before its first call on; the error has limit, peak and the next type, and the next call works."""
    with pytest.raises(errors.OutOfMemory, match="machine type `XS`") as caught:
        take(900)
    assert caught.value.limit_bytes == 256 << 20
    assert caught.value.peak_bytes is not None
    assert caught.value.peak_bytes > 200 << 20
    assert caught.value.next_type == "S"
    assert 'machine_type="S"' in caught.value.hint
    assert take(50) == 50 << 20


@pytest.mark.as_user
def test_the_default_type_serves_what_an_explicit_small_one_does_not(atoll_home: Home) -> None:
    """A function without a type may use most of the machine; the same function as XS may not."""
    assert take.on(machine_type=None)(700) == 700 << 20
    with pytest.raises(errors.OutOfMemory):
        take(700)


@pytest.mark.as_user
def test_processor_time_is_limited_to_what_the_type_names(atoll_home: Home, kernel: frozenset[str]) -> None:
    """An XS that spins for a second computes for about a quarter of it."""
    if "cpu" not in kernel:
        pytest.skip("this user cannot limit processor time here")

    @isolated(machine_type="XS")
    def spin() -> float:
        begin, computed = time.perf_counter(), time.process_time()
        while time.perf_counter() - begin < 1.0:
            pass
        return (time.process_time() - computed) / (time.perf_counter() - begin)

    assert spin() < 0.45


@pytest.mark.as_user
def test_a_fork_bomb_is_stopped_and_the_next_call_works(atoll_home: Home, kernel: frozenset[str]) -> None:
    """Processes that multiply are refused at the limit and are ended with their worker, whatever they do."""
    if "pids" not in kernel:
        pytest.skip("without a group the bomb is kept small, and ends with its sandbox only")
    settings(atoll_home, "[pool]\nworker_processes = 64\n")

    @isolated(keep_alive=60)
    def bomb() -> int:
        while True:
            os.fork()

    @isolated(keep_alive=60)
    def count() -> int:
        return sum(name.isdigit() for name in os.listdir("/proc"))

    count()
    with pytest.raises((BlockingIOError, errors.WorkerDied)):
        bomb()
    until(lambda: count() <= 5)  # the bomb's processes end without a call that asks for it


def test_a_function_has_no_more_calls_at_a_time_than_it_says(atoll_home: Home) -> None:
    """Over several programs, `max_concurrency` bounds the calls of one function, and nothing behind it waits for it."""
    settings(atoll_home, "[pool]\nslots = 8\n")
    program = atoll_home.path / "program.py"
    program.write_text(
        "import os, sys, time\nfrom atoll import isolated\n"
        "@isolated(max_concurrency=2)\n"
        "def enter(name):\n"
        "    import os, time\n"
        "    os.makedirs('/data/inside', exist_ok=True)\n"
        "    open(f'/data/inside/{name}', 'w').close()\n"
        "    time.sleep(0.15)\n"
        "    found = len(os.listdir('/data/inside'))\n"
        "    os.unlink(f'/data/inside/{name}')\n"
        "    return found\n"
        "@isolated\n"
        "def free():\n"
        "    return True\n"
        "if __name__ == '__main__':\n"
        "    calls = [enter.submit(f'{os.getpid()}-{n}') for n in range(5)]\n"
        "    assert free()\n"
        "    print(max(call.result() for call in calls))\n"
    )
    programs = [
        subprocess.Popen(
            [sys.executable, str(program)], env=atoll_home.environment(), stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    most = [int(one.communicate(timeout=120)[0]) for one in programs]
    assert max(most) == 2


def test_a_resting_lease_does_not_keep_a_function_from_others(atoll_home: Home) -> None:
    """A program that holds the only permitted lease between two calls gives it to the program that waits for it."""

    def who() -> int:
        return os.getpid()

    single = isolated(max_concurrency=1, keep_alive=120)(who)
    first = single()
    other = isolated(max_concurrency=1, keep_alive=120, env={"OTHER": "1"})(who)
    assert other() != first


def test_a_function_that_waits_for_itself_is_refused(atoll_home: Home) -> None:
    """A call with `max_concurrency=1` that calls itself can never be served, and hears so at once."""
    program = atoll_home.path / "chain.py"
    program.write_text(
        "from atoll import errors, isolated\n"
        "@isolated(max_concurrency=1)\n"
        "def again(depth):\n"
        "    if not depth:\n"
        "        return 'reached'\n"
        "    try:\n"
        "        return again(depth - 1)\n"
        "    except errors.ResourcesUnavailable as error:\n"
        "        return str(error)\n"
        "if __name__ == '__main__':\n"
        "    print(again(1))\n"
        "    print(again.on(max_concurrency=None)(0))\n"
    )
    lines = atoll_home.python(str(program)).stdout
    assert "max_concurrency" in lines
    assert lines.endswith("reached\n")


def test_a_function_is_the_same_from_inside_another(atoll_home: Home) -> None:
    """The bound holds for a function of the program, of its modules, and with other options, by whatever it is called.

    A call that would wait for itself is refused only if both ends know it as the same function.
    """
    (atoll_home.path / "package").mkdir()
    (atoll_home.path / "package/__init__.py").write_text("")
    body = (
        "from atoll import errors, isolated\n"
        "def attempt(function, depth):\n"
        "    if not depth:\n"
        "        return 'another'\n"
        "    try:\n"
        "        return function(depth - 1)\n"
        "    except errors.ResourcesUnavailable:\n"
        "        return 'the same'\n"
        "@isolated(max_concurrency=1)\n"
        "def plain(depth=1):\n"
        "    return attempt(plain, depth)\n"
        "@isolated(max_concurrency=1)\n"
        "def changed(depth=1):\n"
        "    return attempt(changed.on(env={'A': 'b'}), depth)\n"
        "@isolated\n"
        "def between(depth):\n"
        "    return through(depth)\n"
        "@isolated(max_concurrency=1)\n"
        "def through(depth=1):\n"
        "    return attempt(between, depth)\n"
        "class Group:\n"
        "    @staticmethod\n"
        "    @isolated(max_concurrency=1)\n"
        "    def member(depth=1):\n"
        "        return attempt(Group.member, depth)\n"
        "short = isolated(max_concurrency=1)(lambda depth=1: attempt(short, depth))\n"
        "functions = [plain, changed, through, Group.member, short]\n"
    )
    (atoll_home.path / "package/module.py").write_text(
        f"{body}@isolated(max_concurrency=1)\n"
        "def imported(depth=1):\n"
        "    from package import module\n"
        "    return attempt(module.imported, depth)\n"
        "functions.append(imported)\n"
    )
    program = atoll_home.path / "program.py"
    program.write_text(
        f"{body}if __name__ == '__main__':\n"
        "    from package import module\n"
        "    print(*(function() for function in [*functions, *module.functions]), sep=',')\n"
    )
    assert atoll_home.python(str(program)).stdout == ",".join(["the same"] * 11) + "\n"
    assert atoll_home.atoll("run", f"{program}::plain").stdout.strip() == "the same"


def test_a_type_without_its_gpu_is_refused(atoll_home: Home) -> None:
    """A GPU type on a machine without one is an error that says so, before anything is built."""
    settings(atoll_home, '[pool]\ngpus = "none"\n')

    @isolated(machine_type="GPU", requirements=["no-such-package-anywhere"])
    def train() -> None:
        pass

    with pytest.raises(errors.ResourcesUnavailable, match="no GPUs"):
        train()


@contextlib.contextmanager
def fake_gpus(home: Home, count: int) -> Iterator[list[str]]:
    """Files that stand for device nodes."""
    paths = [str(home.path / f"nvidia{number}") for number in range(count)]
    for path in paths:
        Path(path).touch()
        os.chmod(path, 0o666)
    settings(home, f'[pool]\nslots = 8\nmemory_bytes = {1 << 40}\ngpus = "{",".join(paths)}"\n')
    yield paths


def test_gpus_are_assigned_to_one_call_at_a_time(atoll_home: Home) -> None:
    """Of three calls at once on two GPUs two have one each, the third gets the one that is free first; none is shared."""
    with fake_gpus(atoll_home, 2) as paths:

        @isolated(machine_type="GPU-T4", keep_alive=60)
        def seen(directory: str, seconds: float) -> tuple[list[str], str, float, float]:
            begin = time.time()
            time.sleep(seconds)
            names = sorted(name for name in os.listdir(directory) if name.startswith("nvidia"))
            return names, os.environ["CUDA_VISIBLE_DEVICES"], begin, time.time()

        @isolated
        def without(directory: str) -> tuple[bool, bool]:
            return os.path.exists(directory), "CUDA_VISIBLE_DEVICES" in os.environ

        directory = os.path.dirname(paths[0])
        answers = [call.result() for call in [seen.submit(directory, 0.3) for _ in range(3)]]
        assert without(directory) == (False, False)
    assert {tuple(names) for names, *_ in answers} == {("nvidia0",), ("nvidia1",)}
    assert {visible for _, visible, *_ in answers} == {"0"}, "the only one that the sandbox has"
    for gpu in ("nvidia0", "nvidia1"):
        times = sorted((begin, end) for names, _, begin, end in answers if names == [gpu])
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(times)), gpu


def test_an_allowance_names_the_gpus_that_workers_get(atoll_home: Home) -> None:
    """A warm worker on another GPU ends, a new call gets the one that is named, and waits where there is none."""
    with fake_gpus(atoll_home, 2) as paths:
        node = Node(load(atoll_home.path))

        @isolated(machine_type="GPU-T4", keep_alive=600)
        def seen(directory: str) -> list[str]:
            return sorted(name for name in os.listdir(directory) if name.startswith("nvidia"))

        directory = os.path.dirname(paths[0])
        assert seen(directory) == ["nvidia0"]
        told = node.open(None, {"type": "watch_load"})
        assert told.receive().header["load"]["fits"]["GPU-T4"] == 1
        assert node.request(None, "allowance", {"gpus": [1]})["gpus"] == 1
        until(lambda: told.receive().header["load"]["running"] == 0)
        assert seen(directory) == ["nvidia1"]
        assert node.request(None, "allowance", {"millicores": 0, "gpus": []})["fits"]["GPU-T4"] == 0
        waiting = seen.submit(directory)
        until(lambda: node.request(None, "load", {})["waiting"] == 1)
        node.request(None, "allowance", {"gpus": ["nvidia0"]})
        assert waiting.result(60) == ["nvidia0"]
        told.close()


def test_an_idle_worker_gives_its_gpu_to_another_function(atoll_home: Home) -> None:
    """The only GPU, held by a warm worker, goes to a call with another environment variable."""
    with fake_gpus(atoll_home, 1):

        @isolated(machine_type="GPU", keep_alive=600)
        def who() -> int:
            return os.getpid()

        first = who()
        assert who() == first
        assert who.on(env={"ANOTHER": "1"})() > 0


def test_a_smaller_machine_says_once_what_it_serves(atoll_home: Home) -> None:
    """A type that is larger than the machine is served with what it has, which is said on stderr once."""
    program = atoll_home.path / "large.py"
    program.write_text(
        "from atoll import isolated\n"
        "@isolated(machine_type='XL')\ndef one():\n    return 1\n"
        "if __name__ == '__main__':\n    print(one(), one.on(env={'A': 'b'})())\n"
    )
    settings(atoll_home, "[pool]\nslots = 1\n")
    done = atoll_home.python(str(program))
    assert done.stdout == "1 1\n"
    assert done.stderr.count("machine type `XL`") == 1
    assert "1 of 8 CPUs" in done.stderr


def test_small_calls_share_a_core(atoll_home: Home) -> None:
    """On one core four XS calls run at a time, where calls of the default type run one after the other."""
    settings(atoll_home, "[pool]\nslots = 1\n")

    @isolated
    def meet(name: int, others: int) -> bool:
        os.makedirs("/data/meet", exist_ok=True)
        open(f"/data/meet/{name}", "w").close()
        deadline = time.monotonic() + 120
        while len(os.listdir("/data/meet")) < others and time.monotonic() < deadline:
            time.sleep(0.01)
        return len(os.listdir("/data/meet")) >= others

    small = meet.on(machine_type="XS")
    assert all(call.result() for call in [small.submit(number, 4) for number in range(4)])


def test_messages_of_a_worker_never_cost_one_another_their_descriptors(atoll_home: Home) -> None:
    """A nested call works also when the worker's word before it is read together with it."""

    @isolated
    def noisy() -> int:
        from atoll.wire import nested

        inner = isolated(len)
        assert nested._control is not None
        for _ in range(40):
            for _ in range(3):
                nested._control[1].send({"type": "nothing"})
            nested.connect().close()
        return inner([1, 2, 3])

    result: list[int] = []
    thread = threading.Thread(target=lambda: result.append(noisy()), daemon=True)
    thread.start()
    thread.join(120)
    assert result == [3]
