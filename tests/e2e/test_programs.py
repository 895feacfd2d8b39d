"""Programs as users write them: scripts, projects, prompts, notebooks, and the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.conftest import Home


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def test_a_script_may_use_helpers_that_are_defined_after_the_function(shared_home: Home, tmp_path: Path) -> None:
    """A function of `__main__` finds what the script defines later."""
    script = write(
        tmp_path / "script.py",
        """
        from atoll import isolated

        @isolated
        def f():
            return later(2)

        def later(x):
            return x * FACTOR

        FACTOR = 21
        print(f())
        """,
    )
    assert shared_home.python(str(script)).stdout == "42\n"


PROJECT_MAIN = """
import pathlib, sys
from atoll import isolated
import helpers

@isolated
def f():
    import late
    from pkg import sub
    return helpers.value(), late.VALUE, sub.read()

here = pathlib.Path(__file__).parent
print(f())
for edit in ("helpers.py", "late.py", "pkg/sub.py", "pkg/data.txt"):
    path = here / edit
    path.write_text(path.read_text().replace("old", "new"))
    print(f())
"""


def test_an_edit_of_a_project_module_is_seen_by_the_next_call(shared_home: Home, tmp_path: Path) -> None:
    """Modules that are imported at the top, inside the body or by one another are fresh, package data too."""
    write(tmp_path / "helpers.py", "def value():\n    return 'old helper'\n")
    write(tmp_path / "late.py", "VALUE = 'old late'\n")
    write(tmp_path / "pkg" / "__init__.py", "")
    write(
        tmp_path / "pkg" / "sub.py",
        """
        import pathlib
        def read():
            return 'old sub', pathlib.Path(__file__).with_name('data.txt').read_text()
        """,
    )
    write(tmp_path / "pkg" / "data.txt", "old data")
    main = write(tmp_path / "main.py", PROJECT_MAIN)
    lines = shared_home.python(str(main)).stdout.splitlines()
    assert lines == [
        "('old helper', 'old late', ('old sub', 'old data'))",
        "('new helper', 'old late', ('old sub', 'old data'))",
        "('new helper', 'new late', ('old sub', 'old data'))",
        "('new helper', 'new late', ('new sub', 'old data'))",
        "('new helper', 'new late', ('new sub', 'new data'))",
    ]


def test_a_function_of_a_project_module_sees_edits_of_its_own_file(shared_home: Home, tmp_path: Path) -> None:
    """A function that is imported from the project is as its file is when the call is made."""
    write(
        tmp_path / "tasks.py",
        """
        from atoll import isolated

        @isolated
        def f():
            return helper()

        def helper():
            return 'old'
        """,
    )
    main = write(
        tmp_path / "main.py",
        """
        import pathlib, tasks
        print(tasks.f())
        tasks.helper = lambda: 'rebound'
        print(tasks.f())
        path = pathlib.Path(tasks.__file__)
        path.write_text(path.read_text().replace("'old'", "'edited'"))
        print(tasks.f())
        """,
    )
    assert shared_home.python(str(main)).stdout.split() == ["old", "rebound", "edited"]


def test_an_edit_of_the_function_alone_keeps_the_worker(shared_home: Home, tmp_path: Path) -> None:
    """Redefining a function at a prompt does not cost the warm worker."""
    script = write(
        tmp_path / "script.py",
        """
        import os
        from atoll import isolated
        code = "@isolated\\ndef f():\\n    return os.getpid(), {}\\n"
        exec(code.format(1)); first = f()
        exec(code.format(2)); second = f()
        print(first[0] == second[0], first[1], second[1])
        """,
    )
    assert shared_home.python(str(script)).stdout == "True 1 2\n"


def test_a_python_prompt_works(shared_home: Home) -> None:
    """Functions that are typed at `python -i` run, and their errors show."""
    typed = "from atoll import isolated\n@isolated\ndef f(x):\n    return x + y\n\ny = 40\nprint(f(2))\n"
    done = subprocess.run(
        [sys.executable, "-i", "-q"],
        input=typed,
        env=shared_home.environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "42" in done.stdout


def test_a_notebook_works(shared_home: Home, tmp_path: Path) -> None:
    """Cells of an IPython session define functions, print through them and see their errors."""
    pytest.importorskip("IPython")
    script = write(
        tmp_path / "cells.py",
        """
        from IPython.core.interactiveshell import InteractiveShell
        shell = InteractiveShell.instance()
        shell.run_cell("from atoll import isolated")
        shell.run_cell("@isolated\\ndef f(x):\\n    print('printed', x)\\n    return x + offset")
        shell.run_cell("offset = 1")
        result = shell.run_cell("f(1)")
        print("result", result.result)
        shell.run_cell("offset = 10")
        print("result", shell.run_cell("f(1)").result)
        """,
    )
    out = shared_home.python(str(script)).stdout
    assert "printed 1" in out
    assert "result 2" in out
    assert "result 11" in out


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    return write(
        tmp_path / "tasks.py",
        """
        from atoll import isolated

        @isolated
        def train(name: str, epochs: int = 1, *, verbose: bool = False):
            '''Train something.'''
            print("training", name, epochs, verbose)
            return epochs * 2

        def plain(x: int):
            return x + 1

        @isolated
        def broken():
            raise ValueError("as expected")
        """,
    )


def test_run_takes_options_from_the_signature(shared_home: Home, tasks: Path) -> None:
    """`atoll run FILE::FUNC --name value` converts by annotation and prints the result."""
    done = shared_home.atoll("run", f"{tasks}::train", "--name", "x", "--epochs", "3", "--verbose")
    assert done.stdout == "training x 3 True\n6\n"
    assert shared_home.atoll("run", f"{tasks}::train", "y").stdout == "training y 1 False\n2\n"
    assert shared_home.atoll("run", f"{tasks}::plain", "41").stdout == "42\n"


def test_run_shows_the_functions_own_options(shared_home: Home, tasks: Path) -> None:
    """`--help` behind a function is the function's."""
    assert "--epochs" in shared_home.atoll("run", f"{tasks}::train", "--help").stdout


def test_run_takes_a_module_of_a_package(shared_home: Home, tmp_path: Path) -> None:
    """By its file and by its name, with relative imports inside; a JSON object keeps its types."""
    write(tmp_path / "pkg" / "__init__.py", "")
    write(tmp_path / "pkg" / "const.py", "X = 5\n")
    write(
        tmp_path / "pkg" / "mod.py",
        """
        from atoll import isolated
        from . import const

        @isolated
        def f(x: dict, y=None):
            from .const import X
            return const.X, X, x, y

        @isolated
        def g():
            'Do the other thing.'
        """,
    )
    given = ("--x", '{"b": 2}', "--y", "1.5")
    for target in (["pkg/mod.py::f"], ["-m", "pkg.mod::f"]):
        assert shared_home.atoll("run", *target, *given, cwd=tmp_path).stdout == "(5, 5, {'b': 2}, 1.5)\n"
    shown = shared_home.atoll("run", "pkg.mod", "--help", cwd=tmp_path).stdout
    assert "pkg.mod::f\n" in shown
    assert "pkg.mod::g  Do the other thing." in shown


def test_an_unguarded_call_does_not_run_with_the_function(shared_home: Home, tmp_path: Path) -> None:
    """To run a function is refused with the line, to build its environment is not."""
    text = "from atoll import isolated\n@isolated\ndef f():\n    print('it ran')\nf()\n"
    (tmp_path / "open.py").write_text(text)
    done = shared_home.atoll("run", "open.py::f", cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "line 5" in done.stderr
    built = shared_home.atoll("env", "build", "open.py::f", cwd=tmp_path)
    assert "it ran" not in built.stdout + built.stderr
    assert "line 5" in built.stderr


def test_a_program_that_calls_at_its_top_level_does_not_recurse(shared_home: Home, tmp_path: Path) -> None:
    """A worker that imports a program without a main guard refuses the program's own calls, and says why."""
    write(
        tmp_path / "first.py",
        """
        import threading
        from atoll import isolated
        lock = threading.Lock()

        @isolated
        def told():
            return lock.locked()

        print(told())
        """,
    )
    done = shared_home.python("-c", "from first import told", cwd=tmp_path, check=False)
    assert "__main__" in done.stderr
    assert "SerializationError" in done.stderr


def test_what_main_defines_is_found_there_by_name(shared_home: Home, tmp_path: Path) -> None:
    """Process pools and pickles written to `/data` find the program's functions and classes in `__main__`."""
    script = write(
        tmp_path / "script.py",
        """
        import pickle
        from multiprocessing import get_context
        from atoll import isolated

        class Model:
            pass

        def square(x):
            return x * x

        @isolated
        def f():
            with get_context("fork").Pool(2) as pool:
                squares = pool.map(square, [1, 2, 3])
            with open("/data/model.pkl", "wb") as file:
                pickle.dump(Model(), file)
            with open("/data/model.pkl", "rb") as file:
                return squares, type(pickle.load(file)).__name__

        print(f())
        """,
    )
    assert shared_home.python(str(script)).stdout == "([1, 4, 9], 'Model')\n"


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["run", "{tasks}::train", "--epochs", "three", "--name", "x"], 2, "three"),
        (["run", "{tasks}::train", "--name", "x", "--epoch", "3"], 2, "epoch"),
        (["run", "{tasks}::train"], 2, "name"),
        (["run", "{tasks}::nothing"], 2, "train"),
        (["run", "{tasks}"], 2, "name one"),
        (["run", "no-such-file.py::f"], 2, "not a file"),
        (["run", "{tasks}::broken"], 1, "as expected"),
        (["run"], 2, ""),
        (["no-such-command"], 2, "no-such-command"),
        (["data", "cat", "no-such-file"], 1, "no-such-file"),
        (["data", "ls", "../x"], 1, ".."),
        (["env", "show", "no-such-key"], 1, "no-such-key"),
    ],
)
def test_a_wrong_command_has_its_status_and_says_why(
    shared_home: Home, tasks: Path, arguments: list[str], status: int, text: str
) -> None:
    """Exit status 1 for a failed operation, 2 for wrong usage; the cause is on stderr."""
    done = shared_home.atoll(*(argument.format(tasks=tasks) for argument in arguments), check=False)
    assert done.returncode == status, done.stderr
    assert text in done.stderr + done.stdout
    assert "Traceback" not in done.stderr or "as expected" in done.stderr


def test_shell_runs_commands_in_the_functions_sandbox(shared_home: Home, tasks: Path) -> None:
    """`atoll shell` reads commands where the function would run, with `/data`, as nobody special."""
    done = subprocess.run(
        [sys.executable, "-c", "from atoll.cli.main import main; main()", "shell", f"{tasks}::train"],
        input="echo $HOME; touch /data/by-shell; id -u; exit 3\n",
        env=shared_home.environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    home, uid = done.stdout.split()[:2]
    assert home == "/home/user"
    assert int(uid) != 0
    assert done.returncode == 3
    assert (shared_home.path / "volumes" / "local" / "data" / "by-shell").exists()


def test_shell_on_a_terminal_has_a_terminal_of_its_own(shared_home: Home, tasks: Path) -> None:
    """On a terminal the shell is interactive, on another terminal device than the caller's."""
    import pty
    import select
    import time

    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(
            sys.executable,
            [sys.executable, "-c", "from atoll.cli.main import main; main()", "shell", f"{tasks}::train"],
            shared_home.environment(),
        )
    os.write(terminal, b"test -t 0 && echo is-a-$((40+2))-terminal; exit 5\n")
    seen = b""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and select.select([terminal], [], [], 60)[0]:
        try:
            data = os.read(terminal, 4096)
        except OSError:
            break
        if not data:
            break
        seen += data
    assert b"is-a-42-terminal" in seen
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
    os.close(terminal)


def test_status_is_an_object_with_daemon_sandboxes_and_workers(shared_home: Home, tasks: Path) -> None:
    """`atoll status --json` has what others rely on."""
    shared_home.atoll("run", f"{tasks}::plain", "1")
    found = json.loads(shared_home.atoll("status", "--json").stdout)
    assert found["daemon"]["pid"] == shared_home.daemon_pid()
    assert found["daemon"]["version"]
    assert found["sandboxes"]
    assert {"id", "sandbox", "function", "state", "pid", "started_at", "memory_bytes", "calls"} <= set(
        found["workers"][0]
    )
    assert "daemon" in shared_home.atoll("status").stdout


def test_the_old_name_of_the_package_gives_the_same_objects() -> None:
    """`fal_serverless` is another name, not another implementation."""
    import atoll
    import fal_serverless
    from atoll.host.remote import older_names

    for name in fal_serverless.__all__:
        source = older_names if name.endswith(("Credentials", "ServerlessHost")) else atoll
        assert getattr(fal_serverless, name) is getattr(source, "cloud" if name == "serverless" else name)
