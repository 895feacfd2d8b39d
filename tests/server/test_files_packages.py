"""Packages and indexes of the caller's machine for a server's functions: uploaded, built here, or refused by name."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import atoll
from atoll.environments.asked import credentials, uploaded
from atoll.errors import EnvironmentBuildError
from atoll.host import index_settings
from atoll.host.remote import package_directories, package_uploads, travelling
from atoll.host.remote.remote_host import Host
from atoll.model.specs import EnvironmentSpec
from atoll.server.files import packages
from atoll.settings import INDEX_VARIABLES, Settings

from ..conftest import needs_outbound
from ..waiting import until
from .process import Server
from .raw_line import RawLine

BACKEND = """
import os, zipfile

def build_wheel(directory, settings=None, metadata=None):
    name = "tree_pkg-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(directory, name), "w") as file:
        file.writestr("tree_pkg.py", open("tree_pkg.py").read())
        file.writestr("tree_pkg-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: tree-pkg\\nVersion: 1.0\\n")
        file.writestr("tree_pkg-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        file.writestr("tree_pkg-1.0.dist-info/RECORD", "")
    return name
"""


@pytest.fixture(scope="module")
def host(server: Server) -> Iterator[Host]:
    """The server as a host of functions."""
    key_id, secret = server.key
    made = Host(server.url, key_id=key_id, key_secret=secret, ca_file=str(server.ca_file))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOLL_HOME", str(tmp_path / "home"))
    for name in INDEX_VARIABLES:
        monkeypatch.delenv(name, raising=False)  # a machine's own index may be a directory
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr(index_settings, "SYSTEM", str(tmp_path))
    package_uploads._known.clear()


def sent(host: Host, *entries: str) -> EnvironmentSpec:
    """Return the environment that a client asks a server for."""
    spec = EnvironmentSpec(requirements=entries, interpreter=sys.executable, index=index_settings.collect(entries))
    return travelling.environment_for(host, spec)


def wheel(directory: Path, name: str, text: str, requires: str = "") -> Path:
    """Make a wheel with one module."""
    directory.mkdir(exist_ok=True)
    path = directory / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.py", text)
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{requires}")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    return path


def tree(directory: Path, name: str = "tree_pkg") -> Path:
    """Make a source tree that is built without anything of an index."""
    directory.mkdir(parents=True)
    backend = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    (directory / "pyproject.toml").write_text(f'{backend}[project]\nname = "{name}"\nversion = "1.0"\n')
    (directory / "backend.py").write_text(BACKEND.replace("tree_pkg", name).replace("tree-pkg", name))
    (directory / f"{name}.py").write_text(f"WORD = {directory.name!r}\n")
    (directory / "PKG-INFO").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    return directory


def sdist(directory: Path, name: str, made: Path) -> Path:
    """Make a source distribution."""
    directory.mkdir(exist_ok=True)
    path = directory / f"{name}-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(tree(made, name), f"{name}-1.0")
    return path


PROGRAM = """
import atoll, atoll.errors

@atoll.isolated(requirements=[
    "-r own.txt", "./packages/dot", "-e ./packages/editable", "-e .", "file:FILE", "named @ file:NAMED", "./dist/one-1.0-py3-none-any.whl",
    "two", "three", "four", "five", "--no-index", "--find-links=./links",
])
def words():
    import importlib
    names = "dot editable whole file named one two three four five six".split()
    return [importlib.import_module(name).WORD for name in names]

@atoll.isolated
def around():
    return inner()

@atoll.isolated(requirements=["four", "--no-index"])
def inner():
    import four
    return four.WORD

print(*words())
try:
    print(around())
except atoll.errors.EnvironmentBuildError as error:
    print("refused", "PIP_FIND_LINKS" in str(error))
print(around.on(requirements=["four"])())
"""


@needs_outbound
def test_a_programs_packages_are_used_there(server: Server, tmp_path: Path) -> None:
    """Trees, wheels and directories of packages of every spelling reach a program's functions, and functions of these.

    Two directories come from variables and a `pip.conf`; a source distribution in one is built on the server.
    """
    project = tree(tmp_path / "project", "whole")
    for name in ("dot", "editable", "file", "named"):
        tree(project / "packages" / name, name)
    wheel(project / "dist", "one", "WORD = 'one'\n")
    wheel(project / "links", "two", "WORD = 'two'\n", "Requires-Dist: five\n")
    sdist(project / "links", "three", project / "made" / "three")
    wheel(project / "variable", "four", "WORD = 'four'\n")
    wheel(project / "configured", "five", "WORD = 'five'\n")
    wheel(project / "configured", "six", "WORD = 'six'\n")
    (project / "pip.conf").write_text(f"[global]\nfind-links = {project / 'configured'}\n")
    (project / "own.txt").write_text(f"six\n--find-links {project / 'configured'}\n")
    program = project / "program.py"
    text = PROGRAM.replace("FILE", str(project / "packages" / "file")).replace("NAMED", f"//{project}/packages/named")
    program.write_text(text)
    key_id, secret = server.key
    login = {"ATOLL_HOST": server.url, "ATOLL_KEY_ID": key_id, "ATOLL_KEY_SECRET": secret}
    variables = {"PIP_FIND_LINKS": str(project / "variable"), "PIP_CONFIG_FILE": str(project / "pip.conf")}
    done = subprocess.run(
        [sys.executable, str(program)],
        env={**os.environ, **login, **variables, "ATOLL_CA_FILE": str(server.ca_file)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "dot editable project file named one two three four five six",
        "refused True",
        "four",
    ]


def test_an_upload_serves_detached_calls_and_shows_no_path(server: Server, host: Host, tmp_path: Path) -> None:
    """A detached call finds its wheel; lines about the build, lock and record name it without the server's directory."""
    one = wheel(tmp_path / "dist", "late_pkg", "WORD = 'late'\n")
    entries = (str(one), "--no-index")
    spec = sent(host, *entries)
    seen = []
    for name in ("environments.build", "environments.lock", "environments.list"):
        line = RawLine(server, {"type": "request", "name": name, "arguments": {"environment": spec.to_data()}})
        while (header := line.header("progress", "answer", "failed"))["type"] == "progress":
            seen.append(header)
        assert header["type"] == "answer", header
        seen.append(header)
        line.close()
    assert any(one.name in str(header.get("line")) for header in seen)
    assert str(server.home.path) not in str(seen)

    @atoll.isolated(requirements=list(entries), host=host)
    def word() -> str:
        import late_pkg  # type: ignore[import-not-found]

        return str(late_pkg.WORD)

    assert word.spawn().result(60) == "late"


def test_an_upload_is_sent_once(server: Server, host: Host, tmp_path: Path) -> None:
    """A package that the server has is not sent again, and is kept for its user."""
    one = wheel(tmp_path / "dist", "once_pkg", "")
    spec = sent(host, f"once-pkg @ file://{one}", "other>=1")
    digest = hashlib.sha256(one.read_bytes()).hexdigest()
    assert spec.requirements == (f"atoll-upload:{digest}/{one.name}", "other>=1")
    (found,) = (server.home.path / "uploads").glob(f"*/{digest}/{one.name}")
    changed = found.stat().st_ctime_ns, found.stat().st_ino
    package_uploads._known.clear()
    sent(host, str(one))
    assert found.stat().st_ino == changed[1]


def test_a_tree_without_uv_is_refused_by_name(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without uv builds no wheels; the message names the tree and the next step."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "uv", None)
    with pytest.raises(EnvironmentBuildError, match="source tree") as refused:
        sent(host, str(tree(tmp_path / "tree")))
    assert "uv" in refused.value.hint


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("/nowhere/pkg", "nothing at"),
        ("git+file:///repo", "git repository"),
        ("-f /nowhere", "cannot read"),
        ("--index-url file:///opt/index", "`--index-url` names `/opt/index`"),
        ("--extra-index-url /opt/index", "`--extra-index-url` names `/opt/index`"),
        ("--index own=/opt/index", "`--index` names `/opt/index`"),
    ],
)
def test_paths_that_cannot_travel_are_refused_by_name(host: Host, entry: str, text: str) -> None:
    """A path that names nothing, or nothing that can be uploaded, is an error before the server is asked."""
    with pytest.raises(EnvironmentBuildError, match=text):
        sent(host, entry)


@pytest.mark.parametrize(
    "entry",
    [
        "atoll-upload:../../x.whl",
        f"atoll-upload:{'0' * 64}/../x.whl",
        f"atoll-upload:{'0' * 64}/.x.whl",
        f"atoll-upload:{'0' * 64}/x/y.whl",
        f"--find-links atoll-upload:{'0' * 63}",
        f"--find-links=atoll-upload:{'0' * 64}/..",
        f"x @ atoll-upload:{'0' * 64}/x.whl",
    ],
)
def test_forged_names_of_uploads_name_nothing(entry: str) -> None:
    """No entry leads out of the directory of its user's uploads."""
    with pytest.raises(EnvironmentBuildError, match="names no upload"):
        uploaded.split(EnvironmentSpec(requirements=(entry,)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("UV_FIND_LINKS", "atoll-upload:../../x"),
        ("UV_FIND_LINKS", f"https://a.example,atoll-upload:{'0' * 64}/x.whl"),
        ("PIP_FIND_LINKS", f"atoll-upload:{'0' * 63}"),
        ("PIP_INDEX_URL", f"atoll-upload:{'0' * 64}"),
        ("uv.toml", f'find-links = ["atoll-upload:{"0" * 64}"]'),
    ],
)
def test_forged_settings_of_uploads_name_nothing(name: str, text: str) -> None:
    """A setting names uploads in the form of a client alone, and where directories may be."""
    with pytest.raises(EnvironmentBuildError, match="names no upload"):
        uploaded.split(EnvironmentSpec(requirements=("x",), index=((name, text),)))


def test_an_upload_that_is_gone_says_so(tmp_path: Path) -> None:
    """An entry whose file is no longer there is an error with the next step."""
    spec = EnvironmentSpec(requirements=(f"atoll-upload:{'0' * 64}/x-1-py3-none-any.whl",))
    with pytest.raises(EnvironmentBuildError, match="no longer on the server"):
        uploaded.resolved(uploaded.split(spec)[1], tmp_path)


@pytest.mark.parametrize("needed", [True, False])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PIP_INDEX_URL", "file:///opt/index"),
        ("PIP_EXTRA_INDEX_URL", "https://a.example/simple file:///opt/index"),
        ("UV_DEFAULT_INDEX", "/opt/index"),
        ("UV_INDEX", "own=/opt/index"),
        ("UV_EXTRA_INDEX_URL", "./index"),
        ("PIP_FIND_LINKS", "/nowhere"),
        ("UV_FIND_LINKS", "https://a.example/links,file:///nowhere"),
        ("uv.toml", 'find-links = ["/nowhere"]\n'),
        ("uv.toml", 'find-links = ["relative"]\n'),
        ("uv.toml", '[[index]]\nurl = "file:///opt/index"\n'),
        ("uv.toml", '[pip]\nindex-url = "/opt/index"\n'),
        ("pip.conf", "[global]\nindex-url = /opt/index\n"),
    ],
)
def test_settings_that_name_this_machine_are_never_left_out_in_silence(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, needed: bool
) -> None:
    """A setting that a server cannot follow is refused by its name; where nothing is needed, the server is told of it."""
    if name.isupper():
        monkeypatch.setenv(name, value)
    else:
        (tmp_path / name).write_text(value)
        monkeypatch.setenv("UV_CONFIG_FILE" if name == "uv.toml" else "PIP_CONFIG_FILE", str(tmp_path / name))
    place = next(one for one in ("/opt/index", "/nowhere", "relative", "index") if one in value)
    if needed:
        with pytest.raises(EnvironmentBuildError) as refused:
            sent(host, "some")
        assert place in refused.value.message
        assert refused.value.hint
        return
    spec = EnvironmentSpec(index=index_settings.collect((), for_calls=True))
    told = dict(travelling.environment_for(host, spec).index)
    assert place in told.pop(credentials.LOCAL)
    assert place not in str(told)
    assert ("https://a.example" in str(told)) is ("https" in value)


def test_a_setting_of_the_network_and_an_index_that_nothing_takes_travel(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Addresses stay as they are; an index of `uv.toml` that only packages take which name it is nobody's here."""
    text = '[[index]]\nname = "own"\nurl = "file:///opt/own"\nexplicit = true\n'
    (tmp_path / "uv.toml").write_text(text)
    monkeypatch.setenv("UV_CONFIG_FILE", str(tmp_path / "uv.toml"))
    monkeypatch.setenv("UV_INDEX", "own=https://a.example/simple https://b.example")
    assert sent(host, "some").index == (
        ("UV_INDEX", "own=https://a.example/simple https://b.example"),
        ("uv.toml", text),
    )


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("a-1-py3-none-any.whl", True),
        ("a-1-py2.py3-none-any.whl", True),
        ("a-1-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", True),
        ("a-1-cp39-abi3-linux_aarch64.whl", True),
        ("a-1-1-cp311-none-any.whl", True),
        ("a-1.tar.gz", True),
        ("a-1-cp312-cp312-manylinux_2_17_x86_64.whl", False),
        ("a-1-cp39-cp39-manylinux_2_17_x86_64.whl", False),
        ("a-1-cp311-cp311-macosx_11_0_arm64.whl", False),
        ("a-1-py3-none-win_amd64.whl", False),
        ("a-1-py2-none-any.whl", False),
        ("a-1-py312-none-any.whl", False),
        ("a-1-pp310-pypy310_pp73-any.whl", False),
    ],
)
def test_packages_for_other_machines_stay_here(name: str, fits: bool) -> None:
    """Of a directory, packages that fit Linux and the function's Python are uploaded."""
    assert package_directories.fits(name, "3.11") is fits
    assert package_directories.fits(name, ">=3.8") is (fits or not any(one in name for one in ("macosx", "win_")))


def test_a_directory_has_bounds(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory with too many packages, too large ones or none that fits is refused with the next step."""
    links = tmp_path / "links"
    wheel(links, "one", "")
    wheel(links, "two", "")
    (links / "notes.txt").write_text("no package")
    monkeypatch.setattr(package_directories, "MOST_NAMES", 1)
    with pytest.raises(EnvironmentBuildError, match="has 2 packages with") as refused:
        sent(host, "one", f"--find-links {links}")
    assert "pip download" in refused.value.hint
    (links / "two-1.0-py3-none-any.whl").rename(links / "two-1.0-py3-none-win32.whl")
    assert len(sent(host, "one", f"--find-links {links}").requirements) == 2
    monkeypatch.setattr(package_directories, "MOST_DIRECTORY_BYTES", 10)
    with pytest.raises(EnvironmentBuildError, match="can be uploaded"):
        sent(host, "one", f"--find-links {links}")
    (links / "one-1.0-py3-none-any.whl").unlink()
    with pytest.raises(EnvironmentBuildError, match="no package that fits"):
        sent(host, "one", f"--find-links {links}")


def test_one_changed_package_of_a_directory_is_sent(server: Server, host: Host, tmp_path: Path) -> None:
    """Packages are kept by their contents: a directory that has changed sends what is new."""
    links = tmp_path / "links"
    kept = wheel(links, "kept_pkg", "")
    first = sent(host, "kept_pkg", f"--find-links {links}")
    digest = hashlib.sha256(kept.read_bytes()).hexdigest()
    (found,) = (server.home.path / "uploads").glob(f"*/{digest}/{kept.name}")
    was = found.stat()
    wheel(links, "new_pkg", "")
    second = sent(host, "kept_pkg", f"--find-links {links}")
    assert first.requirements[1] != second.requirements[1]
    assert found.stat().st_ino == was.st_ino
    assert found.stat().st_nlink == was.st_nlink + 1


def put(server: Server, path: str, body: bytes, headers: dict[str, str] | None = None) -> int:
    """Return the status of an upload."""
    return server.ask("PUT", f"/v1/packages/{path}", body, server.headers() if headers is None else headers)[0]


def test_what_is_announced_is_what_is_kept(server: Server) -> None:
    """A package has the digest of its address, a list names packages that are here, and nothing else is kept."""
    key = hashlib.sha256(b"x").hexdigest()
    before = {path for path in (server.home.path / "uploads").rglob("*") if path.is_file()}
    assert put(server, f"{'0' * 64}/x-1-py3-none-any.whl", b"x") == 400
    assert put(server, f"{key}/x-1-py3-none-any.whl", b"y") == 400
    assert put(server, f"{key}/x-1.exe", b"x") == 400
    assert put(server, "..%2f..%2fx/x-1-py3-none-any.whl", b"x") in (400, 404)
    assert put(server, f"{key}/..%2fx-1-py3-none-any.whl", b"x") in (400, 404)
    assert put(server, f"{key}/x-1-py3-none-any.whl", b"x", {}) == 401
    assert server.ask("GET", f"/v1/packages/{key}/x-1-py3-none-any.whl")[1] == {"present": False}
    for listed in (
        b"",
        b"no list\n",
        f"{key} ../x-1-py3-none-any.whl\n".encode(),
        f"{key} x-1.tar.gz\n{'0' * 64} x-1.tar.gz\n".encode(),
        b"".join(f"{key} x-{number}.tar.gz\n".encode() for number in range(1001)),
        b"x" * (600 << 10),
    ):
        assert put(server, hashlib.sha256(listed).hexdigest(), listed) in (400, 413, 507), listed[:100]
    listed = f"{key} x-1.tar.gz\n".encode()
    assert put(server, key, listed) == 400
    name = hashlib.sha256(listed).hexdigest()
    status, answer = server.ask("PUT", f"/v1/packages/{name}", listed)
    assert (status, answer) == (202, {"present": False, "missing": [f"{key}/x-1.tar.gz"]})
    assert server.ask("GET", f"/v1/packages/{name}")[1] == {"present": False}
    assert {path for path in (server.home.path / "uploads").rglob("*") if path.is_file()} == before


def test_an_upload_that_is_cut_off_leaves_nothing(server: Server) -> None:
    """A client that goes away in the middle leaves no file, and its turn is free again."""
    body = os.urandom(4 << 20)
    path = f"/v1/packages/{hashlib.sha256(body).hexdigest()}/cut-1.tar.gz"
    new = server.home.path / "uploads"
    for _ in range(4):  # more than a user has at a time
        connection = server.connection()
        connection.putrequest("PUT", path)
        for name, value in {**server.headers(), "Content-Length": str(len(body))}.items():
            connection.putheader(name, value)
        connection.endheaders(body[: 2 << 20])
        until(lambda: list(new.glob("*/.new-*")))
        connection.close()
        until(lambda: not list(new.glob("*/.new-*")))
    assert put(server, path.removeprefix("/v1/packages/"), body) == 201


def test_the_packages_of_a_user_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past a number or bytes the least recently used go; a file that a directory has too counts once in bytes."""
    user = tmp_path / "uploads" / "u"
    user.mkdir(parents=True)

    def take(body: bytes, name: str) -> str:
        temporary, key = user / ".new-x", hashlib.sha256(body).hexdigest()
        temporary.write_bytes(body)
        packages._take(user, temporary, key, name)
        for number, one in enumerate(sorted(user.iterdir(), key=lambda path: path.stat().st_mtime_ns)):
            os.utime(one, (number, number))  # the order of their use, without a wait
        return key

    def kept() -> set[str]:
        return {path.name for path in user.iterdir()}

    monkeypatch.setattr(packages, "MOST_OF_USER", 250)
    first, second = take(b"a" * 100, "a-1.zip"), take(b"b" * 100, "b-1.zip")
    assert packages._link(user, "listed", {"b-1.zip": second}) == []
    os.utime(user / "listed", (1, 1))
    os.utime(user / first, (2, 2))  # used since
    third = take(b"c" * 100, "c-1.zip")
    assert kept() == {first, third} or kept() == {second, third}
    monkeypatch.setattr(packages, "MOST_PACKAGES", 1)
    last = take(b"d", "d-1.zip")
    assert kept() == {last}
    assert packages._link(user, "other", {"gone-1.zip": first}) == [f"{first}/gone-1.zip"]


def test_what_a_killed_server_has_left_of_uploads_goes(tmp_path: Path) -> None:
    """Parts of files and of directories are removed when the next server starts; packages stay."""
    user = tmp_path / "uploads" / "u"
    (user / ".new-directory").mkdir(parents=True)
    (user / ".new-directory" / "a-1.zip").write_bytes(b"a")
    (user / ".new-file").write_bytes(b"a")
    (user / ("0" * 64)).mkdir()

    async def never() -> None:
        raise AssertionError

    packages.Packages(Settings(tmp_path), never).sweep()
    assert os.listdir(user) == ["0" * 64]
    packages.Packages(Settings(tmp_path / "nothing"), never).sweep()


def test_a_name_that_its_wheel_does_not_have_is_no_package(host: Host, tmp_path: Path) -> None:
    """A wheel that holds another package than its name says ends in an error, and the next call works."""
    one = wheel(tmp_path / "dist", "claimed_pkg", "")
    other = wheel(tmp_path / "other", "other_pkg", "").replace(one)
    assert isolated_import(host, "sys") == "sys"
    with pytest.raises(EnvironmentBuildError):
        isolated_import(host, "claimed_pkg", str(other), "--no-index")


def isolated_import(host: Host, name: str, *requirements: str) -> str:
    """Return the name of a module that a function imports."""
    return str(atoll.isolated(requirements=list(requirements), host=host)(named)(name))


def named(name: str) -> str:
    """Import a module; return its name."""
    import importlib

    return importlib.import_module(name).__name__
