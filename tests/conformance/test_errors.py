"""What goes wrong in a function has its own error at the caller, and the call after it works."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from atoll import errors

from .conftest import Place
from .samples import Refusing, Speechless, Unreadable


def fail(error: BaseException) -> None:
    raise error


def add(one: int, two: int = 1) -> int:
    return one + two


RAISED: dict[str, BaseException] = {
    "a builtin": ValueError("bad value"),
    "a lookup": KeyError("missing"),
    "a system error": FileNotFoundError(2, "No such file", "/data/none"),
    "a text error": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    "a time-out of the function's own": TimeoutError("its own"),
    "an assertion": AssertionError("not so"),
    "a missing module": ModuleNotFoundError("No module named 'x'", name="x"),
    "one that is no `Exception`": GeneratorExit("gone"),
    "one that ends an iteration": StopIteration(3),
    "one of asyncio": __import__("asyncio").CancelledError("stopped"),
    "one of the project": Refusing(7, reason="no stock"),
    "one without words": ValueError(),
    "one of many words": ValueError("long " * 100_000),
    "one of many scripts": ValueError("日本語\n\0\udcff"),
    "one with values": ValueError({"a": [1, 2]}, (3,)),
}


@pytest.mark.parametrize("name", RAISED)
def test_an_exception_arrives_as_itself(place: Place, name: str) -> None:
    """Type, arguments and attributes of an exception are those that it was raised with."""
    error = RAISED[name]
    with pytest.raises(type(error)) as caught:
        place.isolated(fail)(error)
    assert type(caught.value) is type(error)
    assert caught.value.args == error.args
    assert (
        vars(caught.value).items() >= {key: value for key, value in vars(error).items() if key != "__notes__"}.items()
    )
    assert place.isolated(add)(1) == 2


def test_the_remote_frames_are_in_the_traceback(place: Place) -> None:
    """A traceback shows where in the function it happened, with its lines of source."""

    def outer() -> None:
        inner()

    def inner() -> None:
        raise LookupError("deep inside")

    with pytest.raises(LookupError) as caught:
        place.isolated(outer)()
    text = "".join(traceback.format_exception(caught.value))
    assert "inner()" in text
    assert 'raise LookupError("deep inside")' in text
    assert [entry.name for entry in traceback.extract_tb(caught.value.__traceback__)][-2:] == ["outer", "inner"]


def test_cause_context_and_notes_are_kept(place: Place) -> None:
    """What an exception came from comes along, with its notes and whether the context is to be shown."""

    def chain(how: str) -> None:
        try:
            os.environ["NO_SUCH_KEY"]
        except KeyError as first:
            error = ValueError("second")
            error.add_note("a note")
            if how == "cause":
                raise error from first
            if how == "none":
                raise error from None
            raise error

    function = place.isolated(chain)
    with pytest.raises(ValueError, match="second") as caught:
        function("cause")
    assert isinstance(caught.value.__cause__, KeyError)
    assert caught.value.__notes__ == ["a note"]
    with pytest.raises(ValueError, match="second") as caught:
        function("context")
    assert isinstance(caught.value.__context__, KeyError)
    with pytest.raises(ValueError, match="second") as caught:
        function("none")
    assert caught.value.__suppress_context__


def test_a_group_arrives_with_its_members(place: Place) -> None:
    """An exception group is handled with `except*` as if it had been raised here."""

    def several() -> None:
        raise ExceptionGroup("several", [ValueError("one"), ExceptionGroup("inner", [KeyError("two")])])

    with pytest.raises(ExceptionGroup) as caught:
        place.isolated(several)()
    matched, rest = caught.value.split(KeyError)
    assert matched is not None
    assert rest is not None
    assert isinstance(rest.exceptions[0], ValueError)


def test_an_exception_of_a_class_made_in_the_function_arrives(place: Place) -> None:
    """A class that the caller cannot import comes by value or as a `RemoteError` that names it."""

    def make() -> None:
        class Own(Exception):
            pass

        raise Own("from inside")

    with pytest.raises(Exception, match="from inside") as caught:
        place.isolated(make)()
    assert "Own" in (type(caught.value).__name__ + getattr(caught.value, "type_name", ""))


def test_a_type_that_the_caller_lacks_is_a_remote_error(place: Place) -> None:
    """`RemoteError` carries the type's name, the message and the traceback's text."""

    def foreign() -> None:
        import types

        module = types.ModuleType("only_there")
        exec("class Strange(Exception): pass", module.__dict__)
        sys.modules["only_there"] = module
        raise module.Strange("from afar")

    with pytest.raises(errors.RemoteError, match="from afar") as caught:
        place.isolated(foreign)()
    assert caught.value.type_name.endswith("Strange")
    assert "foreign" in caught.value.traceback_text


def test_an_attribute_that_cannot_be_pickled_costs_itself(place: Place) -> None:
    """The exception keeps its type and text, and a note names the attribute."""

    def hold() -> None:
        import threading

        error = ValueError("holds a lock")
        error.lock = threading.Lock()  # type: ignore[attr-defined]
        raise error

    with pytest.raises(ValueError, match="holds a lock") as caught:
        place.isolated(hold)()
    assert "`lock`" in caught.value.__notes__[0]


def test_an_exception_whose_type_cannot_be_pickled_is_named(place: Place) -> None:
    """The error says which exception it was, and what it said."""

    def hold() -> None:
        import threading

        lock = threading.Lock()

        class Held(Exception):
            def use(self) -> object:
                return lock

        raise Held("has a lock")

    with pytest.raises(errors.SerializationError, match="Held") as caught:
        place.isolated(hold)()
    assert isinstance(caught.value.__cause__, errors.RemoteError)
    assert "has a lock" in str(caught.value.__cause__)


def test_an_exception_with_a_wrong_pickling_of_its_own_arrives(place: Place) -> None:
    """An exception whose own pickles nobody can load keeps its type."""

    def unreadable() -> None:
        raise Unreadable("nobody can read this")

    with pytest.raises(Unreadable, match="nobody can read this"):
        place.isolated(unreadable)()
    assert place.isolated(add)(1) == 2


def test_an_exception_that_cannot_speak_arrives(place: Place) -> None:
    """An exception whose `str` raises is no trouble for who carries it."""

    def speechless() -> None:
        raise Speechless(1)

    with pytest.raises((Speechless, errors.AtollError)):
        place.isolated(speechless)()
    assert place.isolated(add)(1) == 2


def test_deep_recursion_is_a_recursion_error(place: Place) -> None:
    """A function that calls itself without end fails like anywhere, and its worker goes on."""

    def forever(depth: int) -> int:
        return 1 + forever(depth + 1)

    with pytest.raises(RecursionError):
        place.isolated(forever)(0)
    assert place.isolated(add)(1) == 2


def test_recursion_to_the_usual_depth_works(place: Place) -> None:
    """The worker's own frames leave a function nearly all of the interpreter's stack."""

    def down(depth: int) -> int:
        return 0 if depth == 0 else 1 + down(depth - 1)

    assert place.isolated(down)(900) == 900


def test_an_error_of_atoll_inside_a_function_passes_through(place: Place) -> None:
    """A function may raise Atoll's own errors; code, hint and details stay."""
    error = errors.ResourcesUnavailable("no room", hint="ask for less", wanted=3)
    with pytest.raises(errors.ResourcesUnavailable) as caught:
        place.isolated(fail)(error)
    assert (caught.value.message, caught.value.hint, caught.value.details) == ("no room", "ask for less", {"wanted": 3})


def test_an_exception_in_a_thread_of_the_function_is_printed_only(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    """A thread that fails prints its traceback, as anywhere; the call goes on."""

    def start() -> str:
        import threading

        thread = threading.Thread(target=fail, args=(ValueError("in a thread"),))
        thread.start()
        thread.join()
        return "done"

    assert place.isolated(start)() == "done"
    assert "in a thread" in capfd.readouterr().err


# --- a worker that ends ------------------------------------------------------------------------------------------------


def end_by(number: int) -> None:
    os.kill(os.getpid(), number)
    signal.pause()


def end_with(status: Any) -> None:
    os._exit(status)


def leave_with(status: Any) -> None:
    sys.exit(status)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGSEGV", "SIGABRT", "SIGUSR1", "SIGHUP", "SIGXCPU"])
def test_a_signal_that_ends_the_worker_is_named(place: Place, name: str) -> None:
    """`WorkerDied` has the signal's number, and its name in the message; it is not guessed to be about memory."""
    with pytest.raises(errors.WorkerDied, match=name) as caught:
        place.isolated(end_by)(getattr(signal, name))
    assert caught.value.signal == getattr(signal, name)
    assert caught.value.exit_status is None
    assert not isinstance(caught.value, errors.OutOfMemory)
    assert caught.value.hint
    assert place.isolated(add)(1) == 2


@pytest.mark.parametrize("status", [0, 1, 77, 255])
def test_a_worker_that_exits_is_named_with_its_status(place: Place, status: int) -> None:
    """`os._exit` in a function is `WorkerDied` with that status, also when it is 0."""
    with pytest.raises(errors.WorkerDied) as caught:
        place.isolated(end_with)(status)
    assert caught.value.exit_status == status
    assert caught.value.signal is None
    assert place.isolated(add)(1) == 2


@pytest.mark.parametrize(("status", "number"), [(None, 0), (0, 0), (3, 3), ("a text", 1)])
def test_sys_exit_ends_the_call_and_not_the_caller(place: Place, status: Any, number: int) -> None:
    """`sys.exit` in a function is `WorkerDied` with the status that a program would have had."""
    with pytest.raises(errors.WorkerDied, match=r"sys\.exit") as caught:
        place.isolated(leave_with)(status)
    assert caught.value.exit_status == number
    assert place.isolated(add)(1) == 2


def test_a_crash_in_c_code_has_the_last_output(place: Place) -> None:
    """What was printed before a crash is in the error too."""

    def crash() -> None:
        import ctypes

        print("about to crash")
        ctypes.string_at(0)

    with pytest.raises(errors.WorkerDied) as caught:
        place.isolated(crash)()
    assert caught.value.signal == signal.SIGSEGV
    assert "about to crash" in caught.value.last_output


def test_a_killed_call_is_not_run_again(place: Place) -> None:
    """Nothing is retried that was not asked for: a call whose worker dies has run once."""

    def once(name: str) -> None:
        with open(f"/data/{name}", "a") as file:
            file.write("run\n")
        os.kill(os.getpid(), signal.SIGKILL)

    def count(name: str) -> int:
        with open(f"/data/{name}") as file:
            return len(file.readlines())

    with pytest.raises(errors.WorkerDied):
        place.isolated(once)("conformance-once")
    assert place.isolated(count)("conformance-once") == 1


def test_a_worker_that_dies_between_two_calls_is_no_error(place: Place) -> None:
    """A warm worker that is gone when the next call comes is replaced without a word."""

    def doom() -> int:
        import subprocess

        subprocess.Popen(
            ["/bin/sh", "-c", f"kill -STOP {os.getpid()}; kill -9 {os.getpid()}"],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
        )
        return os.getpid()

    for _ in range(5):
        with_doom = place.isolated(doom, env={"CONFORMANCE": "doom"})
        try:
            with_doom()
        except errors.WorkerDied:
            continue  # it was killed before it had answered
    assert place.isolated(add, env={"CONFORMANCE": "doom"})(1) == 2


def test_data_written_before_a_failure_stays(place: Place) -> None:
    """What a call wrote to `/data` is there, however the call ended."""

    def write(name: str, end: Callable[[], Any]) -> None:
        with open(f"/data/conformance-{name}", "w") as file:
            file.write("kept")
        end()

    def read(name: str) -> str:
        with open(f"/data/conformance-{name}") as file:
            return file.read()

    ends: dict[str, tuple[Callable[[], Any], type[BaseException]]] = {
        "raised": (lambda: fail(ValueError()), ValueError),
        "exited": (lambda: end_with(1), errors.WorkerDied),
        "killed": (lambda: end_by(signal.SIGKILL), errors.WorkerDied),
    }
    for name, (end, error) in ends.items():
        with pytest.raises(error):
            place.isolated(write)(name, end)
        assert place.isolated(read)(name) == "kept"


# --- what is asked for wrongly -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [((), "missing"), ((1, 2, 3), "takes"), ((object, None), "unsupported operand")],
)
def test_wrong_arguments_fail_like_any_call(place: Place, arguments: tuple[Any, ...], text: str) -> None:
    """Arguments that do not fit the signature are the usual `TypeError`."""
    with pytest.raises(TypeError, match=text):
        place.isolated(add)(*arguments)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"requirments": []}, "requirements"),
        ({"keepalive": 1}, "keep_alive"),
    ],
)
def test_an_unknown_option_names_the_nearest(place: Place, options: dict[str, Any], text: str) -> None:
    """A misspelt option is a `TypeError` when the function is defined."""
    with pytest.raises(TypeError, match=text):
        place.isolated(add, **options)


def test_another_python_version_is_refused_with_both(place: Place) -> None:
    """A pickled function does not go to another minor version; the error names the two."""
    with pytest.raises(errors.PythonVersionMismatch, match=r"2\.7") as caught:
        place.isolated(add, python_version="2.7")(1)
    assert f"{sys.version_info[0]}.{sys.version_info[1]}" in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    "requirements",
    [
        pytest.param(["no-such-package-as-this-one"], id="unknown"),
        pytest.param(["six==1.16.0", "six==1.15.0"], id="conflicting"),
        pytest.param(["==1"], id="unreadable"),
    ],
)
def test_requirements_that_cannot_be_met_are_named(place: Place, requirements: list[str]) -> None:
    """The error names the requirement and holds the builder's words; it is the same at the next call."""
    function = place.isolated(add, requirements=requirements)
    for _ in range(2):
        with pytest.raises(errors.EnvironmentBuildError) as caught:
            function(1)
        assert requirements[0].split("==")[0] in str(caught.value)
        assert caught.value.hint
