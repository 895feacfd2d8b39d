"""Calls from end to end: a real daemon, real sandboxes, real workers."""

from __future__ import annotations

import functools
import os
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import as_completed, wait
from pathlib import Path
from typing import Any

import pytest

from atoll import errors, isolated, local
from atoll.model.stored_call import StoredCall
from atoll.payload.functions import loads_result
from atoll.sdk.display.output import CallerStreams
from tests.conftest import Home
from tests.e2e.shapes import Point, TwoArguments

from ..waiting import until

pytestmark = [pytest.mark.as_user, pytest.mark.usefixtures("shared_home")]

LIMIT = 3


@isolated
def add(one: Any, two: Any = 1) -> Any:
    return one + two


@isolated
def scaled(value: int) -> int:
    return value * LIMIT + helper_defined_below(value)


def helper_defined_below(value: int) -> int:
    return value


@isolated()
def whoami() -> tuple[int, int, str]:
    return os.getpid(), os.getuid(), os.getcwd()


@isolated
def say(out: str, err: str = "") -> None:
    sys.stdout.write(out)
    sys.stderr.write(err)


@isolated
def shell(command: str) -> int:
    return os.system(command)


@isolated
def raise_it(error: BaseException) -> None:
    raise error


@isolated
def end_worker(how: str) -> None:
    if how == "exit":
        os._exit(0)
    if how == "sys.exit":
        sys.exit(1)
    if how == "segv":
        import ctypes

        ctypes.string_at(0)
    os.kill(os.getpid(), getattr(__import__("signal"), how))


@isolated
def nest(depth: int) -> list[int]:
    return [depth] if depth == 0 else [depth, *nest(depth - 1)]


def test_a_call_returns_its_result() -> None:
    """Positional and keyword arguments arrive, and the result comes back."""
    assert add(1, two=41) == 42


def test_the_worker_is_another_process_and_never_root() -> None:
    """A function runs elsewhere, as somebody who is not root, in a directory of its own."""
    pid, uid, directory = whoami()
    assert pid != os.getpid()
    assert uid != 0
    assert directory == "/home/user"


@pytest.mark.once
def test_a_changed_global_and_helper_are_seen_by_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a function refers to is taken as it is when the call is made, also by a warm worker."""
    assert scaled(2) == 8
    monkeypatch.setattr(sys.modules[__name__], "LIMIT", 10)
    assert scaled(2) == 22
    monkeypatch.setattr(sys.modules[__name__], "helper_defined_below", lambda value: 1000)
    assert scaled(2) == 1020


@pytest.mark.once
def test_closures_lambdas_builtins_and_partials_run() -> None:
    """Whatever can be called and pickled can be isolated."""
    cell = [1]

    def inner(x: int) -> int:
        return x + cell[0]

    function = isolated(inner)
    assert function(1) == 2
    cell[0] = 5
    assert function(1) == 6
    assert isolated(len)([1, 2]) == 2
    assert isolated(lambda: "lambda")() == "lambda"
    assert isolated(functools.partial(pow, 2))(5) == 32


@pytest.mark.once
def test_instances_of_the_callers_own_class_come_back_as_such() -> None:
    """`isinstance` holds for what a function returns."""

    @isolated
    def move(point: Point) -> Point:
        return Point(point.x + 1)

    moved = move(Point(1))
    assert isinstance(moved, Point)
    assert moved.x == 2


def test_a_warm_call_uses_the_same_worker() -> None:
    """Two calls in a row meet the same process."""
    assert whoami()[0] == whoami()[0]


def test_env_reaches_the_function_and_the_hosts_environment_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function sees the variables of `env` and none of the caller's."""
    monkeypatch.setenv("SECRET_OF_THE_HOST", "x")

    @isolated(env={"GREETING": "hello"})
    def look() -> tuple[str | None, bool, str]:
        return os.environ.get("GREETING"), "SECRET_OF_THE_HOST" in os.environ, os.environ["HF_HOME"]

    assert look() == ("hello", False, "/data/.cache/huggingface")


def test_data_stays_between_functions_and_workers() -> None:
    """What one function writes to `/data` another one reads, in another worker."""

    @isolated(env={"N": "1"})
    def write(text: str) -> None:
        Path("/data/note.txt").write_text(text)
        os._exit(3)

    @isolated(env={"N": "2"})
    def read() -> str:
        return Path("/data/note.txt").read_text()

    with pytest.raises(errors.WorkerDied):
        write("kept")
    assert read() == "kept"


def test_files_of_data_can_be_opened_outside(shared_home: Home) -> None:
    """A volume is an ordinary directory of the state directory."""

    @isolated
    def write() -> None:
        Path("/data/outside.txt").write_text("seen")

    write()
    assert (shared_home.path / "volumes" / "local" / "data" / "outside.txt").read_text() == "seen"


# --- output -----------------------------------------------------------------------------------------------------------


def test_stdout_and_stderr_arrive_apart_and_whole(capfd: pytest.CaptureFixture[str]) -> None:
    """What Python, subprocesses and C code print arrives on the stream on which it was printed."""
    say("", "")  # the first call of a daemon may be told something of this machine
    capfd.readouterr()
    say("out", "err")
    shell("echo sub; echo problem >&2")

    @isolated
    def from_c() -> None:
        import ctypes

        ctypes.CDLL(None).printf(b"from C\n")

    from_c()
    captured = capfd.readouterr()
    assert captured.out == "outsub\nfrom C\n"
    assert captured.err == "errproblem\n"


@pytest.mark.once
def test_two_hundred_thousand_lines_lose_none(capfd: pytest.CaptureFixture[str]) -> None:
    """Output is complete when the call returns, however much it is."""

    @isolated
    def count() -> None:
        for number in range(200_000):
            print(number)

    count()
    assert capfd.readouterr().out.split() == [str(number) for number in range(200_000)]


@pytest.mark.once
def test_output_of_a_worker_that_dies_is_not_lost(capfd: pytest.CaptureFixture[str]) -> None:
    """What was printed before a crash arrives, and the error carries its end."""

    @isolated
    def crash() -> None:
        print("last words")
        os.kill(os.getpid(), 9)

    with pytest.raises(errors.WorkerDied) as caught:
        crash()
    assert capfd.readouterr().out == "last words\n"
    assert caught.value.last_output == "last words\n"


@pytest.mark.once
def test_output_arrives_while_the_function_runs(shared_home: Home, tmp_path: Path) -> None:
    """A caller whose stdout is a pipe sees a partial line before the function ends."""
    program = tmp_path / "live.py"
    program.write_text(
        "import sys, pathlib, time\n"
        "from atoll import isolated\n"
        "@isolated\n"
        "def f():\n"
        "    sys.stdout.write('10%\\r')\n"
        "    deadline = time.time() + 20\n"
        "    while not pathlib.Path('/data/go-on').exists() and time.time() < deadline: time.sleep(0.01)\n"
        "    print('end')\n"
        "f()\n"
    )
    mark = shared_home.path / "volumes" / "local" / "data" / "go-on"
    mark.unlink(missing_ok=True)
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, env=shared_home.environment()) as run:
        assert run.stdout is not None
        assert os.read(run.stdout.fileno(), 100) == b"10%\r"
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        mark.chmod(0o644)
        assert run.stdout.read() == b"end\n"


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.once
def test_an_exception_keeps_type_message_notes_cause_and_remote_frames() -> None:
    """An exception comes back as its own type, as if it had been raised here."""

    @isolated
    def fail() -> None:
        try:
            _ = 1 / 0
        except ZeroDivisionError as cause:
            error = ValueError("bad")
            error.add_note("a note")
            raise error from cause

    with pytest.raises(ValueError, match="bad") as caught:
        fail()
    assert caught.value.__notes__ == ["a note"]
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert caught.traceback[-1].name == "fail"
    assert caught.traceback[-1].path == Path(__file__)


@pytest.mark.once
def test_an_exception_with_its_own_constructor_keeps_its_type() -> None:
    """A class whose `__init__` takes other arguments than `args` is rebuilt all the same."""

    @isolated
    def fail() -> None:
        raise TwoArguments(7, "text")

    with pytest.raises(TwoArguments, match="7: text") as caught:
        fail()
    assert caught.value.code == 7


def _unpicklable() -> Any:
    return threading.Lock()


@isolated
def return_lock() -> Any:
    return threading.Lock()


@isolated
def raise_unpicklable() -> None:
    error = ValueError("holds a lock")
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    raise error


@isolated
def raise_foreign() -> None:
    code = "class Strange(Exception):\n    pass\n"
    import types

    module = types.ModuleType("nowhere_else")
    exec(code, module.__dict__)
    sys.modules["nowhere_else"] = module
    raise module.Strange("from afar")


@isolated
def import_missing() -> None:
    import there_is_no_such_module  # type: ignore[import-not-found]  # noqa: F401


CASES: list[tuple[str, Any, type[BaseException], str]] = [
    ("unpicklable argument", lambda: add(_unpicklable()), errors.SerializationError, "argument"),
    ("unpicklable result", lambda: return_lock(), errors.SerializationError, "lock"),
    ("exception with an unpicklable attribute", lambda: raise_unpicklable(), ValueError, "holds a lock"),
    ("exception class that the caller lacks", lambda: raise_foreign(), errors.RemoteError, "from afar"),
    ("module missing in the worker", lambda: import_missing(), ModuleNotFoundError, "there_is_no_such_module"),
    ("os._exit(0)", lambda: end_worker("exit"), errors.WorkerDied, "status 0"),
    ("sys.exit(1)", lambda: end_worker("sys.exit"), errors.WorkerDied, r"sys.exit\(1\)"),
    ("SIGKILL", lambda: end_worker("SIGKILL"), errors.WorkerDied, "SIGKILL"),
    ("SIGSEGV", lambda: end_worker("segv"), errors.WorkerDied, "SIGSEGV"),
    (
        "requirement that does not exist",
        lambda: isolated(requirements=["no-such-package-as-this-one"])(len)([]),
        errors.EnvironmentBuildError,
        "no-such-package-as-this-one",
    ),
    (
        "requirements that conflict",
        lambda: isolated(requirements=["six==1.16.0", "six==1.15.0"])(len)([]),
        errors.EnvironmentBuildError,
        "six",
    ),
    (
        "requirement that cannot be read",
        lambda: isolated(requirements=["=="])(len)([]),
        errors.EnvironmentBuildError,
        "==",
    ),
    ("another Python", lambda: isolated(python_version="2.7")(len)([]), errors.PythonVersionMismatch, "2.7"),
    (
        "a patch version that is not there",
        lambda: isolated(python_version=f"3.{sys.version_info[1]}.99")(len)([]),
        errors.EnvironmentBuildError,
        "99",
    ),
    (
        "mount of what is not there",
        lambda: isolated(mounts={"/datasets": "/no/such/directory"})(len)([]),
        errors.ResourcesUnavailable,
        "/no/such/directory",
    ),
    ("mount over the sandbox", lambda: isolated(mounts={"/etc": "/tmp"})(len)([]), errors.ResourcesUnavailable, "/etc"),
]


@pytest.mark.parametrize(("call", "error", "text"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_each_failure_has_its_named_error_and_the_next_call_works(
    call: Any, error: type[BaseException], text: str
) -> None:
    """A failed call names its cause and a next step, and leaves nothing broken."""
    with pytest.raises(error, match=text) as caught:
        call()
    if isinstance(caught.value, errors.AtollError):
        assert caught.value.hint
    assert add(1) == 2


@pytest.mark.once
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"requirments": []}, "did you mean `requirements`"),
        ({"keepalive": 1}, "did you mean `keep_alive`"),
        ({"requirements": "numpy"}, "list of texts"),
        ({"keep_alive": "long"}, "number of seconds"),
    ],
)
def test_a_wrong_option_is_refused_when_the_function_is_defined(options: dict[str, Any], text: str) -> None:
    """An unknown or wrongly typed option is a `TypeError` that says what would be right."""
    with pytest.raises(TypeError, match=text):
        isolated(**options)


def test_a_fork_that_comes_back_from_the_function_does_not_answer_twice() -> None:
    """Only the worker itself answers a call."""

    @isolated
    def fork() -> str:
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
        return "parent" if pid else "child"

    assert [fork(), fork()] == ["parent", "parent"]


def test_what_a_dead_worker_started_is_dead() -> None:
    """Processes that a killed call left behind are killed with it."""

    @isolated(env={"ROUND": "leftovers"})
    def leave() -> None:
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
        os.kill(os.getpid(), 9)

    @isolated
    def look() -> str:
        return "".join(path.read_text() for path in Path("/proc").glob("[0-9]*/cmdline"))

    with pytest.raises(errors.WorkerDied):
        leave()
    assert "sleep\0" not in look()


# --- futures, maps, other hosts ---------------------------------------------------------------------------------------


@pytest.mark.once
def test_submit_gives_futures_that_complete() -> None:
    """`submit` works with `concurrent.futures.as_completed`."""
    futures = {add.submit(number): number for number in range(50)}
    assert sorted(future.result() for future in as_completed(futures)) == list(range(1, 51))


@pytest.mark.once
def test_map_keeps_order_and_starmap_spreads() -> None:
    """Results come in the order of the input."""
    assert list(add.map(range(30))) == list(range(1, 31))
    assert list(add.starmap([(1, 2), (3, 4)])) == [3, 7]


@pytest.mark.once
def test_map_takes_from_its_input_as_it_goes() -> None:
    """An endless input is fine: only a bounded number of items is taken ahead."""
    taken = []

    def endless() -> Any:
        number = 0
        while True:
            taken.append(number)
            yield number
            number += 1

    results = add.map(endless())
    assert [next(results) for _ in range(3)] == [1, 2, 3]
    results.close()
    assert len(taken) < 1000


@pytest.mark.once
def test_a_call_that_waits_can_be_cancelled(atoll_home: Home) -> None:
    """`Future.cancel` works until the call is sent to a worker, and those who wait for several are told."""
    (atoll_home.path / "settings.toml").write_text("[pool]\nslots = 1\n")
    futures = [isolated(time.sleep).submit(1) for _ in range(3)]
    until(lambda: any(future.running() for future in futures))
    waiting = next(future for future in futures if not future.running())
    assert waiting.cancel()
    _, left = wait(futures, 120)
    assert not left
    assert [future.cancelled() for future in futures].count(True) == 1


def test_one_functions_changes_of_the_process_do_not_reach_the_next() -> None:
    """Working directory, standard streams, environment and arguments are as they should be at each call."""

    @isolated
    def disturb() -> int:
        os.chdir("/tmp")
        sys.stdout = open(os.devnull, "w")  # left behind on purpose
        os.environ["LEFT"] = "behind"
        sys.argv.append("--left")
        return os.getpid()

    @isolated
    def look() -> tuple[int, str, bool, bool, list[str]]:
        return os.getpid(), os.getcwd(), sys.stdout is sys.__stdout__, "LEFT" in os.environ, sys.argv

    pid = disturb()
    assert look() == (pid, "/home/user", True, False, [""])


def test_a_running_call_can_be_cancelled() -> None:
    """`cancel` kills a call that runs, and its future says so."""

    @isolated
    def sleep() -> None:
        Path("/data/sleeping").touch()
        time.sleep(1000)

    @isolated
    def begun() -> bool:
        return Path("/data/sleeping").exists()

    future = sleep.submit()
    while not begun():
        pass
    assert sleep.cancel(future)
    with pytest.raises(errors.CallCancelled):
        future.result()
    assert not sleep.cancel(future)
    assert add(1) == 2


@pytest.mark.once
def test_on_keeps_the_other_options_and_local_runs_here() -> None:
    """`.on` changes what it is told to; `.local` is the plain function."""
    changed = add.on(local, keep_alive=3)
    assert changed(1) == 2
    assert changed.options.keep_alive == 3
    assert add.options.keep_alive == 10
    assert isolated(os.getpid).local() == os.getpid()


def test_the_first_example_of_the_reference_runs() -> None:
    """A requirement is there inside, and only there."""

    @isolated(requirements=["pyjokes"])
    def joke() -> str:
        import pyjokes

        return str(pyjokes.get_joke())

    assert joke()


@pytest.mark.once
def test_a_result_whose_module_is_missing_here_is_named() -> None:
    """A result that only the worker can unpickle is a `SerializationError` that names the module."""

    @isolated(requirements=["pyjokes"])
    def module_object() -> Any:
        import pyjokes.pyjokes

        return pyjokes.pyjokes.LanguageNotFoundError("x")

    with pytest.raises(errors.SerializationError, match="pyjokes"):
        module_object()


def test_our_own_names_in_requirements_are_satisfied_by_the_sandbox() -> None:
    """`fal-serverless` is never installed, and its import works in every sandbox."""

    @isolated(requirements=["fal-serverless==0.6.4", "atoll"])
    def names() -> list[str]:
        import atoll
        import fal_serverless

        return [fal_serverless.isolated.__module__, os.path.dirname(atoll.__file__)]

    assert names() == ["atoll.sdk.decorator", "/opt/atoll/lib/atoll"]


def test_mounts_show_a_directory_read_only(tmp_path: Path) -> None:
    """A mounted directory is seen without copying, and cannot be written."""
    (tmp_path / "data.txt").write_text("mounted")
    tmp_path.chmod(0o755)

    @isolated(mounts={"/datasets/x": tmp_path})
    def read() -> tuple[str, str]:
        try:
            Path("/datasets/x/new").write_text("")
        except OSError as error:
            return Path("/datasets/x/data.txt").read_text(), type(error).__name__
        return "", "written"

    assert read() == ("mounted", "OSError")


# --- nested calls -----------------------------------------------------------------------------------------------------


@pytest.mark.once
def test_twenty_nested_calls_run_on_one_slot(atoll_home: Home) -> None:
    """A chain of calls needs a single slot, since all but the last only wait."""
    (atoll_home.path / "settings.toml").write_text("[pool]\nslots = 1\n")
    assert nest(19) == list(range(19, -1, -1))


@pytest.mark.once
def test_a_chain_that_can_never_fit_is_refused(atoll_home: Home) -> None:
    """A chain of nested calls that is longer than there may be workers ends in a named error."""
    (atoll_home.path / "settings.toml").write_text("[pool]\nslots = 1\nmax_workers = 3\n")
    with pytest.raises(errors.ResourcesUnavailable):
        nest(10)
    assert nest(2) == [2, 1, 0]


def test_a_nested_function_has_its_own_environment() -> None:
    """A function calls another one with other requirements, and its exception passes through."""

    @isolated(requirements=["pyjokes"])
    def inner(fail: bool) -> str:
        import pyjokes

        if fail:
            raise KeyError("from inside")
        return str(pyjokes.__name__)

    @isolated
    def outer(fail: bool) -> str:
        return inner(fail) + "!"

    assert outer(False) == "pyjokes!"
    with pytest.raises(KeyError, match="from inside"):
        outer(True)


@pytest.mark.once
def test_a_nested_call_uses_the_environment_that_the_program_built(
    shared_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller's index settings hold for nested calls too, so that nothing is built twice."""
    monkeypatch.setenv("UV_PRERELEASE", "allow")

    @isolated(requirements=["pyjokes>=0.6"])
    def inner() -> str:
        return sys.prefix

    @isolated
    def outer() -> str:
        return inner()

    inner()
    isolated(len)([])
    before = {path.name for path in (shared_home.path / "environments").iterdir()}
    assert outer() == "/opt/atoll/env"
    after = {path.name for path in (shared_home.path / "environments").iterdir()}
    assert after == before


def test_a_nested_call_cannot_name_paths_of_the_host() -> None:
    """Code in a sandbox cannot have the daemon show it the host's files."""

    @isolated
    def attack(which: str) -> str:
        from atoll import errors, isolated

        choices: dict[str, dict[str, Any]] = {
            "mounts": {"mounts": {"/host": "/"}},
            "path": {"requirements": ["/etc"]},
            "file": {"requirements": ["x @ file:///etc"]},
            "capitals": {"requirements": ["x @ FILE:///etc"]},
            "behind a flag": {"requirements": ["x", "--pre --extra-index-url=/etc"]},
            "index": {"requirements": ["x", "--index-url=/etc"]},
            "links": {"requirements": ["x", "--find-links=/etc"]},
            "repository": {"requirements": ["x @ git+file:///etc"]},
        }
        try:
            isolated(**choices[which])(os.listdir)("/")
        except errors.AtollError as error:
            return "refused" if "a call from inside a sandbox" in error.message else type(error).__name__
        return "served"

    assert attack("mounts") == "ResourcesUnavailable"
    for spelling in ("path", "file", "capitals", "behind a flag", "index", "links", "repository"):
        assert attack(spelling) == "refused", spelling


def test_a_function_cannot_stop_the_daemon() -> None:
    """The control requests of the owner are not open to code in a sandbox."""

    @isolated
    def attack() -> str:
        from atoll import errors, local

        try:
            local.request("stop", {})
        except errors.AtollError as error:
            return type(error).__name__
        return "stopped"

    assert attack() == "ResourcesUnavailable"
    assert add(1) == 2


@pytest.mark.once
def test_a_stored_call_runs_when_its_caller_is_gone() -> None:
    """A queue keeps a call as bytes, with its modules and large buffers; whoever takes it out runs it on a host."""
    request = isolated(sized).request((pickle.PickleBuffer(bytearray(b"x" * 5000)), Point(1)))
    assert request.call.buffers
    stored = StoredCall.from_bytes(StoredCall(*request).to_bytes())
    message = local.run(stored.spec, stored.call, stored.bundle, CallerStreams())
    size, point = loads_result(message.buffers[0], message.buffers[1:])
    assert (size, type(point), point.x) == (5000, Point, 1)


def sized(data: Any, point: Point) -> tuple[int, Point]:
    return len(data), point
