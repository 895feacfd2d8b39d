"""The smaller parts of environments: logs read into errors, lock files, locks, trees, records."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from atoll.environments.asked import local_sources
from atoll.environments.build import diagnosis, lockfile
from atoll.environments.built import locks, records
from atoll.errors import DiskFull, EnvironmentBuildError

NO_SUCH = (
    "error: No solution found when resolving dependencies\n"
    "  cause: Because {} was not found in the package registry and you require {}, we can conclude that your "
    "requirements are unsatisfiable.\n"
)


@pytest.mark.parametrize(
    ("log", "message", "hint"),
    [
        (NO_SUCH.format("numpyy", "numpyy"), "no package `numpyy`", "did you mean `numpy`?"),
        (NO_SUCH.format("pandsa", "pandsa"), "no package `pandsa`", "did you mean `pandas`?"),
        (NO_SUCH.format("Pandas", "Pandas"), "no package `Pandas`", "check the name, and the index"),
        (NO_SUCH.format("zq-internal", "zq-internal"), "no package `zq-internal`", "check the name"),
        (
            (
                "  cause: Because there is no version of numpy==99.0 and you require numpy==99.0, we can conclude that "
                "your requirements are unsatisfiable."
            ),
            "no release of `numpy==99.0` matches",
            "check the version",
        ),
        (
            (
                "  cause: Because you require numpy<2 and numpy>2.1, we can conclude that your requirements are "
                "unsatisfiable."
            ),
            "conflict: because you require numpy<2 and numpy>2.1",
            "loosen",
        ),
        (
            (
                "  cause: Because flask was not found in the cache and you require flask, we can conclude that your "
                "requirements are unsatisfiable.\nhint: Packages were unavailable because the network was disabled."
            ),
            "offline, and `flask` is not in the cache",
            "UV_OFFLINE",
        ),
        (
            (
                "error: Request failed after 3 retries in 7.9s\n  cause: Failed to fetch: http://i.example/simple/flask/\n"
                "  cause: dns error\n  cause: failed to lookup address information: Name or service not known"
            ),
            "cannot reach `i.example` (failed to lookup address information: Name or service not known)",
            "network",
        ),
        (
            "error: Failed to build `pycairo==1.20.0`\n  cause: The build backend returned an error",
            "`pycairo==1.20.0` failed to build",
            "compilers",
        ),
        (
            (
                "  cause: Because tensorflow==1.15.0 has no wheels with a matching Python ABI tag (e.g., `cp311`) and you "
                "require tensorflow==1.15, we can conclude that your requirements are unsatisfiable."
            ),
            "tensorflow==1.15.0 has no wheels",
            "python_version",
        ),
        ("error: HTTP status client error (403 Forbidden) for url", "answers `403 Forbidden`", "credentials"),
        ("", "status 2", "log"),
    ],
)
def test_the_builders_words_become_an_error(log: str, message: str, hint: str) -> None:
    """Each way in which a build fails gives its own message and next step, with the log kept."""
    error = diagnosis.explain("3f9c" * 8, 2, log)
    assert isinstance(error, EnvironmentBuildError)
    assert error.message.startswith("could not build environment `3f9c3f9c`: ")
    assert message in error.message
    assert hint in error.hint
    assert error.log == log


def test_a_full_disk_is_the_operators_matter() -> None:
    """`ENOSPC` in the log is `DiskFull`, whatever else is there."""
    error = diagnosis.explain("a" * 32, 2, "error: Failed to build `x`\n  cause: No space left on device (os error 28)")
    assert isinstance(error, DiskFull)


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("hint: Wheels are required for `x` because building from source is disabled for all packages", True),
        ("error: Building source distributions is disabled, but attempted to build `p`", True),
        ("error: Building source distributions for `x` is disabled", True),
        (NO_SUCH.format("x", "x"), False),
    ],
)
def test_only_the_lack_of_wheels_leads_to_a_build(log: str, expected: bool) -> None:
    """Code of packages runs only where wheels are the problem."""
    assert diagnosis.needs_building(log) is expected


def _distribution(packages: Path, name: str, origin: str = "") -> None:
    directory = packages / f"{name}.dist-info"
    directory.mkdir(parents=True)
    if origin:
        (directory / "direct_url.json").write_text(origin)


def test_a_lock_pins_what_is_installed(tmp_path: Path) -> None:
    """Names are canonical, repositories have their commit, local paths are comments, credentials are gone."""
    _distribution(tmp_path, "Foo_Bar-1.0")
    _distribution(tmp_path, "local-1", '{"url": "file:///opt/atoll/input/x", "dir_info": {}}')
    _distribution(
        tmp_path,
        "repo-2",
        '{"url": "https://me:pw@h.example/r", "vcs_info": {"vcs": "git", "commit_id": "abc", "requested_revision": "m"}}',
    )
    text = lockfile.installed(tmp_path)
    assert text == "# local==1 from a local path\nfoo-bar==1.0\nrepo @ git+https://h.example/r@abc\n"
    assert lockfile.constraints(text) == ["foo-bar==1.0"]


def test_a_lock_does_not_follow_what_a_build_left(tmp_path: Path) -> None:
    """A link in place of a package's origin is not read."""
    secret = tmp_path / "secret.json"
    secret.write_text('{"url": "https://leak.example"}')
    _distribution(tmp_path / "site", "x-1")
    (tmp_path / "site" / "x-1.dist-info" / "direct_url.json").symlink_to(secret)
    assert lockfile.installed(tmp_path / "site") == "x==1\n"


def test_hashes_come_and_go() -> None:
    """Hashes are put beside their own versions, and taking them off gives the first lock back."""
    text = "a==1\nb==2\nc==3\n"
    resolved = "a==1 \\\n    --hash=sha256:11 \\\n    --hash=sha256:12\nb==9 \\\n    --hash=sha256:99\nC==3 \\\n    --hash=sha256:31\n"
    hashed = lockfile.with_hashes(text, resolved)
    assert hashed == ("a==1 \\\n    --hash=sha256:11 \\\n    --hash=sha256:12\nb==2\nc==3 \\\n    --hash=sha256:31\n")
    assert lockfile.without_hashes(hashed) == text
    assert lockfile.constraints(hashed) == ["a==1", "b==2", "c==3"]


def test_a_lock_excludes_other_processes_and_ends_with_its_holder(tmp_path: Path) -> None:
    """A lock of another process is seen, and free when that is killed."""
    path = tmp_path / "lock"
    code = (
        "import sys; from pathlib import Path; from atoll.environments.built.locks import try_lock;"
        "lock = try_lock(Path(sys.argv[1]), exclusive=True); print('held', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    assert locks.try_lock(path, exclusive=False) is None
    child.kill()
    child.communicate()
    lock = locks.try_lock(path, exclusive=True)
    assert lock is not None
    lock.release()


def test_shared_locks_exclude_the_exclusive_one(tmp_path: Path) -> None:
    """Several may share a lock; removing waits for all of them."""
    path = tmp_path / "lock"
    first, second = locks.try_lock(path, exclusive=False), locks.try_lock(path, exclusive=False)
    assert first is not None
    assert second is not None
    first.release()
    assert locks.try_lock(path, exclusive=True) is None

    async def wait() -> None:
        asyncio.get_running_loop().call_soon(second.release)
        (await locks.wait_exclusive(path, lambda: None)).release()

    asyncio.run(wait())


def test_a_failure_is_left_for_those_who_waited(tmp_path: Path) -> None:
    """A waiter gets the error of the build that it waited for, and not of one before."""
    path = tmp_path / "lock"
    with locks.try_lock(path, exclusive=True) or pytest.fail("not free") as lock:
        lock.note_failure(EnvironmentBuildError("no", hint="so"))
    with locks.try_lock(path, exclusive=True) or pytest.fail("not free") as lock:
        error = lock.failure_since(time.time() - 60)
        assert isinstance(error, EnvironmentBuildError)
        assert (error.message, error.hint) == ("no", "so")
        assert lock.failure_since(time.time() + 60) is None
        lock.note_failure(None)
        assert lock.failure_since(0) is None


def test_reading_along_gives_each_line_once(tmp_path: Path) -> None:
    """A tail gives complete lines as they come, and starts again with a new file."""
    path = tmp_path / "log"
    tail = locks.Tail(path)
    assert tail.lines() == []
    path.write_text("one\ntw")
    assert tail.lines() == ["one"]
    with path.open("a") as file:
        file.write("o\n")
    assert tail.lines() == ["two"]
    (tmp_path / "new").write_text("three\n")
    (tmp_path / "new").rename(path)
    assert tail.lines() == ["three"]


def test_a_trees_digest_is_its_content(tmp_path: Path) -> None:
    """Content, names and executable bits count; the place, times and what use leaves behind do not."""
    one, other = tmp_path / "one", tmp_path / "other"
    for tree in (one, other):
        (tree / "package").mkdir(parents=True)
        (tree / "package" / "module.py").write_text("x = 1\n")
    (other / ".git").mkdir()
    (other / "package" / "__pycache__").mkdir()
    (other / "package" / "__pycache__" / "module.pyc").write_text("")
    os.utime(other / "package" / "module.py", (1, 1))
    same = local_sources.content_digest(str(one))
    assert local_sources.content_digest(str(other)) == same
    (other / "package" / "module.py").write_text("x = 2\n")
    assert local_sources.content_digest(str(other)) != same
    (one / "package" / "module.py").chmod(0o755)
    assert local_sources.content_digest(str(one)) != same


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A missing local path is an error of the caller's that names it."""
    with pytest.raises(EnvironmentBuildError, match="nothing-here"):
        local_sources.content_digest(str(tmp_path / "nothing-here"))


def test_generations_have_names_of_their_own() -> None:
    """The first generation is the key itself; names that are none are told apart."""
    name = "0123456789abcdef" * 2
    assert records.split(name) == (name, 1)
    assert records.split(records.name_of(name, 3)) == (name, 3)
    assert [records.split(other) for other in (".cache", name + ".x", name[:-1], name + ".0")] == [None] * 4
