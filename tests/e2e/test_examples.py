"""The programs in `examples/`, under both import names; each is what the guide tells people to run."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

from ..conftest import Home
from ..waiting import soak, until

pytestmark = pytest.mark.as_user

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ("atoll", "fal_serverless")
IMPORTS = ("atoll", pytest.param("fal_serverless", marks=pytest.mark.once))


def run_example(home: Home, tmp_path: Path, name: str, imported: str, timeout_seconds: float = 100.0) -> str:
    """Run a program of `examples/` and return what it printed on stdout."""
    text = (EXAMPLES / name).read_text()
    text, count = re.subn(r"^from atoll import", f"from {imported} import", text, flags=re.MULTILINE)
    assert count == 1
    program = tmp_path / name
    program.write_text(text)
    return home.python(str(program), cwd=tmp_path, timeout_seconds=timeout_seconds).stdout


@pytest.mark.parametrize("imported", IMPORTS)
def test_preferences_are_kept(shared_home: Home, tmp_path: Path, imported: str) -> None:
    """What one call writes to `/data` is there at the next call, and outside, as a file of the volume."""
    printed = run_example(shared_home, tmp_path, "preferences.py", imported)
    assert printed.splitlines() == [
        "stored the preferences of user 7 in /data/user_7_preferences.txt",
        "another call reads: hiking, jazz, black tea",
    ]
    assert shared_home.in_data("user_7_preferences.txt").read_text() == "hiking, jazz, black tea"


@pytest.mark.parametrize("imported", IMPORTS)
def test_directory_is_uploaded_and_listed(shared_home: Home, tmp_path: Path, imported: str) -> None:
    """A directory given to `sync_dir` is listed by `os.system` inside a function."""
    printed = run_example(shared_home, tmp_path, "upload.py", imported)
    assert printed.split() == ["uploaded", "to", "/data/sync/remote_dir", "customers.csv", "orders.csv", "readme.txt"]


@pytest.mark.parametrize("imported", IMPORTS)
def test_requirement_is_there(shared_home: Home, tmp_path: Path, imported: str) -> None:
    """A function finds a package that is installed for it alone."""
    assert len(run_example(shared_home, tmp_path, "pyjokes_quickstart.py", imported).strip()) > 10


@pytest.mark.parametrize("imported", IMPORTS)
def test_functions_call_each_other(shared_home: Home, tmp_path: Path, imported: str) -> None:
    """A function's call of another one runs in the other's environment and returns to it."""
    printed = run_example(shared_home, tmp_path, "nested.py", imported)
    assert "^__^" in printed
    assert "smoking shelters" in printed


@pytest.mark.once
@pytest.mark.parametrize("imported", IMPORTS)
def test_calls_run_at_the_same_time(shared_home: Home, tmp_path: Path, imported: str) -> None:
    """Futures of `submit` work with `as_completed`, and each has its own call's result."""
    lines = run_example(shared_home, tmp_path, "concurrent_calls.py", imported).splitlines()
    assert [line.split()[-2] for line in lines[:-1]] == ["1229", "1033", "983", "958"]
    assert lines[-1] == "total: 4203"


@pytest.mark.once
@pytest.mark.parametrize("imported", IMPORTS)
def test_options_change_on_local(shared_home: Home, tmp_path: Path, imported: str) -> None:
    """`.on(local, …)` changes the options that are given, and `.local` runs in the caller's process."""
    assert run_example(shared_home, tmp_path, "on_local.py", imported).splitlines() == [
        "on the default host: hello from /home/user",
        "on local, with a variable: good morning from /home/user",
        "in this process: hello from my own home",
    ]


@pytest.mark.once
@pytest.mark.parametrize("imported", IMPORTS)
def test_a_worker_stays_warm(shared_home: Home, tmp_path: Path, imported: str) -> None:
    """With `keep_alive` the second call finds what the first one has loaded; without it each has its own worker."""
    assert run_example(shared_home, tmp_path, "keep_alive.py", imported).splitlines() == [
        "loaded the model",
        "scores: 1 -1",
        "the same worker: True",
        "loaded the model",
        "a worker for each call: True",
    ]


@pytest.mark.once
@pytest.mark.parametrize("imported", IMPORTS)
def test_a_cached_function_computes_once(fresh_home: Home, tmp_path: Path, imported: str) -> None:
    """In the sequence 4, 3, 4, 3, 5 the second 4 and 3 compute nothing; nor does any, in the next run of the program."""
    lines = run_example(fresh_home, tmp_path, "cached_functions.py", imported).splitlines()
    assert [line for line in lines if line.startswith("computing")] == [f"computing for {size}" for size in (4, 3, 5)]
    predictions = [line for line in lines if line.startswith("predict")]
    assert [line.split()[-1] for line in predictions] == ["6", "3", "6", "3", "10"]
    until(lambda: {one["state"] for one in _workers(fresh_home)} <= {"idle"})  # the daemon has seen the program's end
    assert [one["function"] for one in _workers(fresh_home)] == ["predict"]
    assert run_example(fresh_home, tmp_path, "cached_functions.py", imported).splitlines() == predictions


def _workers(home: Home) -> list[dict[str, str]]:
    workers: list[dict[str, str]] = json.loads(home.atoll("status", "--json").stdout)["workers"]
    return workers


@pytest.mark.parametrize("imported", IMPORTS)
def test_a_machine_type_is_a_limit(shared_home: Home, tmp_path: Path, imported: str) -> None:
    """What does not fit into `XS` is an error with the limit, and fits into a larger type."""
    assert run_example(shared_home, tmp_path, "machine_types.py", imported).splitlines() == [
        "S: 100 MB fit",
        "XS: 100 MB fit",
        "XS: OutOfMemory at 256 MB",
        "M: 1000 MB fit",
    ]


@pytest.mark.parametrize("imported", IMPORTS)
def test_the_volume_is_used_from_outside(shared_home: Home, tmp_path: Path, imported: str) -> None:
    """Files that a program puts on the volume are read by a function, and by fsspec under `atoll://`."""
    assert run_example(shared_home, tmp_path, "volume.py", imported).splitlines() == [
        "in /data/notes: copy.txt, island.txt",
        "words, counted by a function: 5",
        "through fsspec: many islands share one lagoon",
    ]


@pytest.mark.once
@pytest.mark.parametrize("imported", IMPORTS)
def test_a_snapshot_is_a_way_back(fresh_home: Home, tmp_path: Path, imported: str) -> None:
    """What an experiment has changed is listed, seen beside what was, and undone."""
    assert run_example(fresh_home, tmp_path, "snapshots.py", imported).splitlines() == [
        "changed /data/model/weights.txt",
        "then and now, as a function sees them:",
        "  good weights",
        "  weights that turned out to be worse",
        "restored: good weights",
    ]


@pytest.mark.once
@pytest.mark.parametrize("imported", IMPORTS)
def test_a_download_is_checked_and_stays(shared_home: Home, tmp_path: Path, imported: str) -> None:
    """A file is downloaded to the volume and read by functions; one with another digest does not replace it."""
    assert run_example(shared_home, tmp_path, "downloads.py", imported).splitlines() == [
        "downloaded to /data/labels.txt",
        "its first line, read by a function: heron",
        "another digest is refused, and the file stays: heron",
    ]


@pytest.mark.once
@pytest.mark.parametrize("imported", IMPORTS)
def test_a_mirror_follows_its_source(fresh_home: Home, tmp_path: Path, imported: str) -> None:
    """A dry run says what a sync would do, what is ignored stays away, and what is gone locally goes."""
    assert run_example(fresh_home, tmp_path, "mirror.py", imported).splitlines() == [
        "what would be done:",
        "mkdir   .",
        "send    .atollignore  (6 bytes)",
        "mkdir   data",
        "send    data/rows.csv  (8 bytes)",
        "mkdir   runs",
        "send    train.py  (18 bytes)",
        "in /data/sync/project: .atollignore, data/rows.csv, train.py",
        "what would be done now:",
        "mode    data",
        "send    data/more.csv  (8 bytes)",
        "remove  data/rows.csv",
        "in /data/sync/project: .atollignore, data/more.csv, train.py",
    ]


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.timeout(900)
def test_network_is_trained_once(shared_home: Home, tmp_path: Path) -> None:
    """A TensorFlow model is trained by the first call ever, and restored from `/data` by all later ones.

    The later ones are the second of its program and, in the long form, those of another program.
    """
    said = re.compile(r"(first|second) call: (trained|restored) in (\d+\.\d+) s, accuracy (\d\.\d+)")
    runs = [
        said.findall(run_example(shared_home, tmp_path, "neural_network.py", imported, 800.0))
        for imported in NAMES[: soak(1, 2)]
    ]
    trained, *later = [[(call, how) for call, how, *_ in run] for run in runs]
    assert trained == [("first", "trained"), ("second", "restored")]
    assert later == [[("first", "restored"), ("second", "restored")]] * soak(0, 1)
    (*_, accuracy), (*_, restored_accuracy) = runs[0]
    assert float(accuracy) == float(restored_accuracy) > 0.5


def test_every_example_is_run_here() -> None:
    """No program of `examples/` is without a test."""
    tested = set(re.findall(r'"(\w+\.py)"', Path(__file__).read_text()))
    assert {path.name for path in EXAMPLES.glob("*.py")} - {"quickstart.py", "on_cloud.py"} <= tested


def test_quickstart_runs_the_three_cases() -> None:
    """`make quickstart` runs the three programs of the first page, in its order."""
    programs = runpy.run_path(str(EXAMPLES / "quickstart.py"))["PROGRAMS"]
    assert [name for name, _ in programs] == ["preferences.py", "neural_network.py", "upload.py"]
