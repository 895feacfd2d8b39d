"""State of a program in a worker: its own calls find it, and the next program does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Home

LEAVE = """
import atexit, codecs, copyreg, io, json, logging, math, os, sys
from atoll import isolated

@isolated(keep_alive=1000)
def look():
    import csv, logging.handlers, math  # by each program
    class Kind: pass
    log = logging.getLogger("myapp")
    child = os.fork()
    if not child:
        atexit.register(print, "of the child", flush=True)
        return
    os.waitpid(child, 0)
    stream = sys.stdout
    return [os.getpid(), {
        "handlers": len(log.handlers), "level": log.level, "propagate": log.propagate, "disabled": log.disabled,
        "filters": len(log.filters), "raises": logging.raiseExceptions, "name": logging.getLevelName(10),
        "class": logging.getLoggerClass().__name__, "factory": logging.getLogRecordFactory().__name__,
        "off": logging.root.manager.disable, "module": math.floor(1.5), "rows": csv.__name__,
        "removed": "logging.handlers" in sys.modules, "fake": "antigravity" in sys.modules,
        "reducers": len(copyreg.dispatch_table), "importer": "/nowhere" in sys.path_importer_cache,
        "errors": codecs.lookup_error("strict") is codecs.strict_errors,
        "stream": [stream.encoding, stream.line_buffering, list(vars(stream)), list(vars(sys.stderr))],
    }]

@isolated(keep_alive=1000)
def leave():
    import types
    class Log(logging.Logger): pass
    class Other: pass
    log = logging.getLogger("myapp")
    log.addHandler(logging.NullHandler()); log.addFilter(print); log.setLevel(10)
    log.propagate, log.disabled = False, True
    logging.raiseExceptions = False; logging.addLevelName(10, "low"); logging.setLoggerClass(Log)
    logging.setLogRecordFactory(lambda *_, **__: None); logging.disable(50)
    sys.modules["math"] = types.ModuleType("math"); sys.modules["csv"] = None
    sys.modules["antigravity"] = types.ModuleType("antigravity"); del sys.modules["logging.handlers"]
    copyreg.pickle(Other, repr); sys.path_importer_cache["/nowhere"] = None
    codecs.register_error("strict", codecs.ignore_errors)
    atexit.register(print, "of an earlier program", flush=True)
    sys.stdout.reconfigure(encoding="latin-1", newline="\\r\\n", line_buffering=True)
    sys.stdout.write = sys.stderr.write = lambda text: len(text)

print("found", json.dumps(look()))
leave()
"""


def test_the_next_program_finds_nothing_of_the_last_one(atoll_home: Home, tmp_path: Path) -> None:
    """Loggers, modules, tables, streams and exit functions are as the first program found them."""
    (tmp_path / "program.py").write_text(LEAVE)
    runs = [atoll_home.python("program.py", cwd=tmp_path).stdout for _ in range(3)]
    found: list[list[Any]] = [json.loads(run.partition("found ")[2]) for run in runs]
    assert found[1] == found[2] == found[0]
    assert [run.partition("found ")[0] for run in runs] == ["of the child\n"] * 3


@pytest.mark.parametrize(
    "change",
    [
        "_thread.start_new_thread(time.sleep, (1000,))",
        "os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))",
        "assert not prctl(38, 1, 0, 0, 0) and not prctl(22, 2, ctypes.byref(program))",
    ],
    ids=["thread", "scheduler", "system calls"],
)
def test_what_cannot_be_undone_ends_the_worker_with_the_program(atoll_home: Home, tmp_path: Path, change: str) -> None:
    """The next program has another worker."""
    (tmp_path / "program.py").write_text(
        "import _thread, ctypes, os, time\nfrom atoll import isolated\n"
        "@isolated(keep_alive=1000)\ndef change():\n"
        "    class Program(ctypes.Structure): _fields_ = [('size', ctypes.c_ushort), ('steps', ctypes.c_void_p)]\n"
        "    allow = ctypes.create_string_buffer((0x06).to_bytes(4, 'little') + (0x7FFF0000).to_bytes(4, 'little'))\n"
        "    program, prctl = Program(1, ctypes.addressof(allow)), ctypes.CDLL(None).prctl\n"
        f"    {change}\n    return os.getpid()\n"
        "print(change())\n"
    )
    assert atoll_home.python("program.py", cwd=tmp_path).stdout != atoll_home.python("program.py", cwd=tmp_path).stdout
