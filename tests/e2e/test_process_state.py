"""A worker's process state: one call's changes do not reach the next, and do not outlive it in another way."""

from __future__ import annotations

import builtins
import contextvars
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from atoll import cached, isolated
from tests.conftest import Home

from ..waiting import until

pytestmark = pytest.mark.usefixtures("shared_home")

VARIABLE = contextvars.ContextVar("VARIABLE", default="unset")

CHANGES = """
signal.signal(signal.SIGALRM, lambda *_: None); signal.setitimer(signal.ITIMER_REAL, 1000)
signal.setitimer(signal.ITIMER_VIRTUAL, 1000); signal.setitimer(signal.ITIMER_PROF, 1000)
signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
ends = os.pipe(); os.set_blocking(ends[1], False); signal.set_wakeup_fd(ends[1])
gc.disable(); gc.set_threshold(1, 2, 3); gc.set_debug(gc.DEBUG_STATS); gc.set_debug(gc.DEBUG_UNCOLLECTABLE)
gc.callbacks.append(lambda *_: None)
warnings.simplefilter("error"); warnings.showwarning = lambda *_, **__: None
sys.settrace(lambda *_: None); sys.setprofile(lambda *_: None); threading.settrace(lambda *_: None)
sys.setrecursionlimit(5000); sys.setswitchinterval(0.5); sys.set_int_max_str_digits(0); sys.setdlopenflags(258)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE); resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
locale.setlocale(locale.LC_ALL, "C"); os.umask(0o077)
sys.path.append("/nowhere"); sys.path = list(sys.path); sys.meta_path.append(None); sys.path_hooks.append(None)
sys.excepthook = sys.unraisablehook = sys.displayhook = sys.breakpointhook = threading.excepthook = print
builtins.open = builtins.print; builtins.added = 1; del builtins.abs
socket.setdefaulttimeout(3); decimal.getcontext().prec = 5; tempfile.tempdir = "/nowhere"; os.chdir("/tmp")
faulthandler.enable(); faulthandler.dump_traceback_later(1000, exit=True)
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); os.environ["ADDED"] = "1"; threading.stack_size(1 << 20)
multiprocessing.set_start_method("spawn"); asyncio.set_event_loop_policy(Policy("Policy", (asyncio.DefaultEventLoopPolicy,), {})())
"""
NAMES = [
    "asyncio",
    "builtins",
    "decimal",
    "faulthandler",
    "gc",
    "locale",
    "multiprocessing",
    "os",
    "resource",
    "signal",
    "socket",
    "sys",
    "tempfile",
    "threading",
    "warnings",
]


def state() -> dict[str, Any]:
    """Return the state that `CHANGES` changes, all of it."""
    import asyncio
    import decimal
    import faulthandler
    import gc
    import locale
    import multiprocessing
    import resource
    import signal
    import socket
    import tempfile
    import warnings

    mask = os.umask(0)
    os.umask(mask)
    return {
        "timers": [signal.getitimer(which) for which in range(3)],
        "handlers": [repr(signal.getsignal(number)) for number in signal.valid_signals()],
        "signal mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "wakeup": signal.set_wakeup_fd(-1),
        "gc": (gc.isenabled(), gc.get_threshold(), gc.get_debug(), len(gc.callbacks)),
        "filters": (len(warnings.filters), warnings.showwarning.__module__),
        "traced": (sys.gettrace(), sys.getprofile(), threading.gettrace()),
        "recursion": (sys.getrecursionlimit(), sys.getswitchinterval(), sys.get_int_max_str_digits()),
        "limits": resource.getrlimit(resource.RLIMIT_NOFILE),
        "locale": (locale.setlocale(locale.LC_ALL), mask, sys.getdlopenflags()),
        "imports": (list(sys.path), len(sys.meta_path), len(sys.path_hooks)),
        "hooks": [one.__name__ for one in (sys.excepthook, sys.unraisablehook, sys.displayhook, threading.excepthook)],
        "builtins": (builtins.open.__module__, abs(-1)),
        "defaults": (socket.getdefaulttimeout(), decimal.getcontext().prec, tempfile.tempdir, os.getcwd()),
        "faulthandler": faulthandler.is_enabled(),
        "cores": len(os.sched_getaffinity(0)),
        "environ": ("ADDED" in os.environ, threading.stack_size()),
        "pools": (
            multiprocessing.get_start_method(allow_none=True),
            type(asyncio.get_event_loop_policy()).__name__ == "Policy",
        ),
    }


@isolated
def worker(change: str) -> tuple[int, dict[str, Any]]:
    if change:
        names = {name: __import__(name) for name in NAMES}
        exec(change, {**names, "Policy": type, "VARIABLE": VARIABLE})
        VARIABLE.set("set")
        return os.getpid(), {}
    return os.getpid(), {**state(), "variable": VARIABLE.get()}


def test_a_calls_changes_are_put_back() -> None:
    """The next call in the same worker finds all of the process's state as the first one did."""
    worker("pass")
    pid, before = worker("")
    assert worker(CHANGES)[0] == pid
    after_pid, after = worker("")
    assert {key: (before[key], after[key]) for key in before if before[key] != after[key]} == {}
    assert after_pid == pid


def stay(seconds: float = 1000) -> None:
    time.sleep(seconds)


@pytest.mark.parametrize(
    "change",
    [
        "os.nice(1)",
        "hard = 1 << 40; resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))",
        "threading.Thread(target=__import__('time').sleep, args=(1000,)).start()",
        "__import__('subprocess').Popen(['sleep', '1000'])",
        "sys.modules['kept.pool'] = multiprocessing.Pool(1)",
    ],
    ids=["priority", "hard limit", "thread", "child", "pool"],
)
def test_a_worker_that_cannot_be_put_back_serves_no_other_call(change: str) -> None:
    """The next call has another worker, and no error."""
    pid, _ = worker(change)
    after, found = worker("")
    assert after != pid
    assert found["signal mask"] == set()


def test_what_waits_for_work_does_not_end_a_worker() -> None:
    """A pool of threads without work, a daemon's thread and an ended child leave the worker as it is."""
    quiet = (
        "from concurrent.futures import ThreadPoolExecutor; sys.modules['kept.pool'] = p = ThreadPoolExecutor(1)\n"
        "p.submit(int).result(); threading.Thread(target=__import__('time').sleep, args=(1000,), daemon=True).start()\n"
        "child = __import__('subprocess').Popen(['true']); os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)"
    )
    pid, _ = worker(quiet)
    assert worker("")[0] == pid


@cached
def started() -> tuple[int, int]:
    import subprocess

    thread = threading.Thread(target=stay)
    thread.start()
    return subprocess.Popen(["sleep", "1000"]).pid, thread.ident or 0


def test_cached_values_may_have_threads_and_processes() -> None:
    """A `@cached` function's threads and children stay, with the worker and the value."""

    @isolated
    def use() -> tuple[int, tuple[int, int]]:
        return os.getpid(), started()

    assert use() == use()


def test_an_imports_changes_stay_with_the_module(tmp_path: Path, shared_home: Home) -> None:
    """What the project's modules set when they are imported is there at each call, a call's own change is not."""
    (tmp_path / "settings_of_mine.py").write_text(
        "import decimal, logging, os, signal, sys, warnings\n"
        "sys.setrecursionlimit(4321); warnings.filterwarnings('ignore', message='mine'); decimal.getcontext().prec = 7\n"
        "signal.signal(signal.SIGUSR2, signal.SIG_IGN); sys.path.append('/of/mine'); os.environ['OF_MINE'] = '1'\n"
    )
    (tmp_path / "program.py").write_text(
        "import os\nfrom atoll import isolated\n"
        "@isolated\ndef look():\n"
        "    import decimal, signal, sys, warnings\n"
        "    warnings.simplefilter('error'); sys.path.append('/of/the/call')\n"
        "    import settings_of_mine\n"
        "    found = [sys.getrecursionlimit(), [f[1].pattern for f in warnings.filters if f[1]], decimal.getcontext().prec,\n"
        "        int(signal.getsignal(signal.SIGUSR2)), [p for p in sys.path if p.startswith('/of')], 'OF_MINE' in os.environ,\n"
        "        sum(f[0] == 'error' for f in warnings.filters)]\n"
        "    sys.setrecursionlimit(2000); decimal.getcontext().prec = 3; return os.getpid(), found\n"
        "(pid, first), (other, second) = look(), look()\n"
        "assert pid == other and first[:4] == second[:4] == [4321, ['mine'], 7, 1], (first, second)\n"
        "assert sorted(second[4]) == ['/of/mine', '/of/the/call'] and second[5:] == [True, 1], second\n"
    )
    shared_home.python("program.py", cwd=tmp_path)


def test_the_next_program_has_random_numbers_log_handlers_and_builtins_of_its_own(
    atoll_home: Home, tmp_path: Path
) -> None:
    """Within a program all go on from call to call, as they would without Atoll."""
    (tmp_path / "program.py").write_text(
        "import os, sys\nfrom atoll import isolated\n"
        "@isolated(keep_alive=1000)\ndef look(change):\n"
        "    import builtins, logging, random\n"
        "    if change: builtins.kept = 1; random.seed(1); logging.getLogger().addHandler(logging.NullHandler())\n"
        "    return os.getpid(), random.random(), len(logging.getLogger().handlers), hasattr(builtins, 'kept')\n"
        "first = look(False)\nlook(True)\nprint(*look(False), *first[2:])\n"
    )
    runs = [atoll_home.python("program.py", cwd=tmp_path).stdout.split() for _ in range(2)]
    assert runs[0][0] == runs[1][0]
    assert runs[0][2:] == runs[1][2:] == ["1", "True", "0", "False"]
    assert runs[0][1] == runs[1][1]  # each has seeded it


def test_an_alarm_that_a_call_leaves_does_not_go_off(capfd: pytest.CaptureFixture[str]) -> None:
    """A timer of an earlier call neither ends the worker nor runs code in a later call."""

    @isolated
    def leave() -> int:
        import signal

        signal.signal(signal.SIGALRM, lambda *_: print("gone off"))
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        return os.getpid()

    pid = leave()
    later = threading.Event()
    timer = threading.Timer(0.3, later.set)
    timer.start()
    until(later.is_set)
    timer.join()
    assert leave() == pid
    assert "gone off" not in capfd.readouterr().out
