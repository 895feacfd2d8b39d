"""The metadata of the project's distributions travels with their modules, for each way to install them as editable."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll.sdk.modules.discover import Sources

from .bare_worker import BareWorker

METADATA = "Metadata-Version: 2.1\nName: {}\nVersion: 0.3\n"
POINTS = "[console_scripts]\ncmd = tool_only:main\n\n[own.plugins]\na = own_plugin.inner:Plugin\n# b = absent:x\n"


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of installed packages, and the main program `app/main.py` of a project."""
    site = tmp_path / "lib/python3/site-packages"
    write(site, {"other-1.dist-info/METADATA": METADATA.format("other"), "other.py": ""})
    write(tmp_path, {"app/main.py": "", "app/pyproject.toml": ""})
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(tmp_path / "app/main.py"), raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "__package__", None, raising=False)
    before = set(sys.modules)
    yield site
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def function(source: str) -> Any:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(source, space)
    return space["f"]


def names(f: Any) -> list[str]:
    found = Sources(f).current()
    return [] if found is None else [file.path for file in found.files]


OWN = function(
    "import importlib.metadata as m, importlib.resources as r\n"
    "def f():\n  import own_pkg\n  points = [point.value for point in m.entry_points(group='own.plugins')]\n"
    "  found = m.distribution('own-pkg')\n"
    "  return (m.version('own_pkg'), points, m.packages_distributions()['own_pkg'], found.files,\n"
    "    found.read_text('direct_url.json'), r.files('own_pkg').joinpath('data.txt').read_text())\n"
)
EDITABLE = {
    "own_pkg-0.3.dist-info/METADATA": METADATA.format("own-pkg"),
    "own_pkg-0.3.dist-info/RECORD": "/home/me/x,,\n",
    "own_pkg-0.3.dist-info/entry_points.txt": POINTS,
    "own_pkg-0.3.dist-info/licenses/LICENSE": "",
}
INSIDE = ("METADATA", "entry_points.txt", "licenses/LICENSE", "top_level.txt")


@pytest.mark.parametrize(
    "link",
    [
        {"own_pkg-0.3.dist-info/direct_url.json": '{{"url": "file://{quoted}", "dir_info": {{"editable": true}}}}'},
        {"own_pkg.pth": "{path}/src\n"},
        {"_own_pkg.pth": "import x\n{path}/src\n"},
        {"__editable__.own_pkg-0.3.pth": "{path}/src"},
        {"_editable_impl_own_pkg.pth": "{path}/src"},
    ],
    ids=lambda link: next(iter(link)),
)
def test_an_editable_distribution_has_its_metadata_in_the_worker(
    link: dict[str, str], site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version, entry points with their modules, packages and resources; no path of this machine."""
    project = tmp_path / "the own é"
    quoted = str(project).replace(" ", "%20").replace("é", "%C3%A9")
    write(site, {**EDITABLE, **{name: text.format(path=project, quoted=quoted) for name, text in link.items()}})
    write(project / "src", {"own_pkg/__init__.py": "", "own_pkg/data.txt": "data", "tool_only.py": ""})
    write(project / "src", {"own_plugin/__init__.py": "", "own_plugin/inner.py": ""})
    monkeypatch.syspath_prepend(str(project / "src"))
    assert names(OWN) == [
        *(f"own_pkg-0.3.dist-info/{name}" for name in INSIDE),
        *("own_pkg/__init__.py", "own_pkg/data.txt", "own_plugin/__init__.py", "own_plugin/inner.py"),
    ]
    with BareWorker(tmp_path / "worker") as worker:
        worker.install(Sources(OWN).current())
        assert worker.call(OWN) == ("0.3", ["own_plugin.inner:Plugin"], ["own-pkg"], None, None, "data")


def test_the_project_s_own_distribution_travels_where_only_its_name_is_used(site: Path, tmp_path: Path) -> None:
    """A script of the project asks for the version without an import of the package."""
    url = f'{{"url": "file://{tmp_path}/app", "dir_info": {{"editable": true}}}}'
    write(site, {**EDITABLE, "own_pkg-0.3.dist-info/direct_url.json": url})
    f = function("def f():\n  from importlib.metadata import version\n  return version('own-pkg')\n")
    assert names(f) == [f"own_pkg-0.3.dist-info/{name}" for name in INSIDE[:3]]


def test_metadata_beside_the_sources_travels(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The `egg-info` of a development install; one of another package in the same directory stays."""
    shared = tmp_path / "shared"
    write(shared, {"old_own.py": "", "old_own.egg-info/PKG-INFO": METADATA.format("old-own"), "more.py": ""})
    write(shared, {"old_own.egg-info/SOURCES.txt": "x", "more.egg-info/PKG-INFO": METADATA.format("more")})
    monkeypatch.syspath_prepend(str(shared))
    f = function("def f():\n  import old_own\n")
    assert names(f) == ["old_own.egg-info/PKG-INFO", "old_own.egg-info/top_level.txt", "old_own.py"]


def test_installed_distributions_and_those_of_other_projects_stay(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment's are the environment's; an editable one whose modules do not travel is not used."""
    url = f'{{"url": "file://{tmp_path}/elsewhere", "dir_info": {{"editable": true}}}}'
    write(site, {**EDITABLE, "own_pkg-0.3.dist-info/direct_url.json": url, "broken-1.dist-info/direct_url.json": "["})
    write(tmp_path, {"app/mine.py": "", "elsewhere/own_pkg.py": ""})
    monkeypatch.syspath_prepend(str(tmp_path / "app"))
    assert names(function("def f():\n  import mine, other\n")) == ["mine.py"]


def test_entry_points_of_atoll_s_own_modules_do_no_harm(site: Path, tmp_path: Path) -> None:
    """A project that registers a module of Atoll's, as a development checkout of Atoll does."""
    points = "[own.plugins]\na = atoll.fsspec:x\nb = own_plugin:y\n"
    url = f'{{"url": "file://{tmp_path}/app", "dir_info": {{"editable": true}}}}'
    write(site, {**EDITABLE, "own_pkg-0.3.dist-info/entry_points.txt": points})
    write(site, {"own_pkg-0.3.dist-info/direct_url.json": url})
    assert "own_pkg-0.3.dist-info/entry_points.txt" in names(function("def f(): pass"))


def test_named_modules_have_their_metadata_too(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `local_modules`."""
    write(site, {**EDITABLE, "own_pkg.pth": f"{tmp_path}/own"})
    write(tmp_path / "own", {"own_pkg.py": ""})
    monkeypatch.syspath_prepend(str(tmp_path / "own"))
    found = Sources(OWN, ["own_pkg"]).current()
    assert found is not None
    assert "own_pkg-0.3.dist-info/METADATA" in {file.path for file in found.files}


def test_metadata_costs_a_warm_call_nothing(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file of it is looked at again while the modules are as they were."""
    write(site, {**EDITABLE, "own_pkg.pth": f"{tmp_path}/own"})
    write(tmp_path / "own", {"own_pkg.py": ""})
    monkeypatch.syspath_prepend(str(tmp_path / "own"))
    found = Sources(OWN, ["own_pkg"])
    found.current()
    looked = [path for unit in found._chosen for path, _ in unit.stamps() or []]
    assert not [path for path in looked if "dist-info" in path]
