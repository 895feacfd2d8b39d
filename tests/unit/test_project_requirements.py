"""Entries of `requirements` on the caller's side: paths made absolute, and files of the project read into entries."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from atoll import isolated
from atoll.environments.asked.requirements import parse, refuse_host_paths
from atoll.errors import EnvironmentBuildError
from atoll.sdk.options import Options
from atoll.sdk.requirements import contents, files
from atoll.sdk.requirements.entries import absolute

HASH = "sha256:" + "0" * 64


def read(entries: tuple[str, ...]) -> tuple[str, ...]:
    """Return the entries with the files' contents, without the stamps of local paths."""
    return tuple(re.sub(r" #[0-9a-f]{16}$", "", entry) for entry in contents.read(entries))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a directory with a wheel directory, a package, a repository and files of requirements."""
    for name in ("wheels", "packages/own", "repo/.git"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("one-1-py3-none-any.whl", "requirements.txt", "limits.txt", "pyproject.toml"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["numpy>=2", "-f wheels"], ["numpy>=2", "-f /P/wheels"]),
        (["--find-links", "wheels", "six"], ["--find-links /P/wheels", "six"]),
        (["--find-links=wheels"], ["--find-links /P/wheels"]),
        (["--no-index --find-links wheels"], ["--no-index", "--find-links /P/wheels"]),
        (["-f https://example.org/x"], ["-f https://example.org/x"]),
        (["--no-binary numpy --pre"], ["--no-binary numpy --pre"]),
        (["-e ."], ["-e /P"]),
        (["--editable=./packages/own[fast]"], ["-e /P/packages/own[fast]"]),
        (["./packages/own[fast]"], ["/P/packages/own[fast]"]),
        (["packages/own"], ["/P/packages/own"]),
        (["packages/other"], ["packages/other"]),
        (["./packages/own ; python_version > '3'"], ["/P/packages/own ; python_version > '3'"]),
        (["one-1-py3-none-any.whl"], ["/P/one-1-py3-none-any.whl"]),
        (["file:./packages/own"], ["file:///P/packages/own"]),
        (["own @ file:./packages/own"], ["own @ file:///P/packages/own"]),
        (["own @ ./packages/own"], ["own @ file:///P/packages/own"]),
        (["git+file:./repo@v1#subdirectory=a"], ["git+file:///P/repo@v1#subdirectory=a"]),
        (["git+./repo"], ["git+file:///P/repo"]),
        (["git+file:///somewhere/repo"], ["git+file:///somewhere/repo"]),
        (["git+https://example.org/a.git@main"], ["git+https://example.org/a.git@main"]),
        (["-r requirements.txt"], ["-r /P/requirements.txt"]),
        (["requirements.txt"], ["-r /P/requirements.txt"]),
        (["-c", "limits.txt"], ["-c /P/limits.txt"]),
        (["pyproject.toml[fast,gpu]"], ["-r /P/pyproject.toml --extra fast --extra gpu"]),
        (["-r pyproject.toml", "--extra fast", "--group", "test"], ["-r /P/pyproject.toml --extra fast --group test"]),
        (["ruamel.yaml", "zope.interface"], ["ruamel.yaml", "zope.interface"]),
        (["--find-links"], ["--find-links"]),
    ],
)
def test_paths_become_absolute(project: Path, given: list[str], expected: list[str]) -> None:
    """A path is looked for in the given directories; packages and addresses stay as they are."""
    found = absolute(given, ("/nowhere", str(project)))
    assert [entry.replace(str(project), "/P") for entry in found] == expected


def test_the_first_place_that_has_a_path_counts(tmp_path: Path) -> None:
    """A file beside the program goes before one in the working directory; one that nobody has is meant beside it."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "both.txt").touch()
    (tmp_path / "b" / "other.txt").touch()
    places = (f"{tmp_path}/a", f"{tmp_path}/b")
    assert absolute(["-r both.txt"], places) == (f"-r {tmp_path}/a/both.txt",)
    assert absolute(["-r other.txt"], places) == (f"-r {tmp_path}/b/other.txt",)
    assert absolute(["-r no.txt"], places) == (f"-r {tmp_path}/a/no.txt",)


@pytest.mark.parametrize("text", ["requirements.txt", "pyproject.toml[dev]", "uv.lock --group test", "-r needs.in"])
def test_one_text_names_a_file(text: str) -> None:
    """`requirements` takes a file's name in place of a list; another text is refused, with the list to write."""
    assert Options().with_changes({"requirements": text}).requirements
    with pytest.raises(TypeError, match=r"write `requirements=\['numpy'\]`"):
        Options().with_changes({"requirements": "numpy"})


def test_a_file_is_read_as_pip_reads_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comments, continued lines, variables, files within files, constraints, and paths from the file's directory."""
    monkeypatch.setenv("INDEX_TOKEN", "hidden")
    (project / "inner").mkdir()
    (project / "requirements.txt").write_text(
        "\ufeff# the first line\nsix==1.0 \\\n    --hash=sha256:00\nidna  # a name\n-r inner/more.txt\n"
        "-c limits.txt\n--extra-index-url https://${INDEX_TOKEN}@example.org/${Other}\n-e ./packages/own\n\n"
    )
    (project / "inner" / "more.txt").write_text("attrs\r\n--find-links ../wheels\r\n")
    (project / "limits.txt").write_text("urllib3<2\n")
    assert read((f"-r {project}/requirements.txt",)) == (
        "six==1.0      --hash=sha256:00",
        "idna",
        "attrs",
        f"--find-links {project}/wheels",
        "--constraint-line 'urllib3<2'",
        "--extra-index-url 'https://hidden@example.org/${Other}'",
        f"-e {project}/packages/own",
    )
    function = isolated(requirements=f"-r {project}/requirements.txt")(len)
    assert "hidden" not in str(function.options.closed()), "a sandbox would see the variable"


PROJECT = """
[project]
name = "Own.Thing"
dependencies = ["six>=1", "torch"]
[project.optional-dependencies]
fast = ["idna", "own-thing[Data_Sets]"]
data-sets = ["attrs"]
[dependency-groups]
test = ["iniconfig", {include-group = "typing"}]
typing = ["mypy"]
[tool.uv]
constraint-dependencies = ["urllib3<2"]
[[tool.uv.index]]
name = "wheels"
url = "https://example.org/wheels"
explicit = true
[tool.uv.sources]
torch = {index = "wheels"}
attrs = {git = "https://example.org/attrs", tag = "v1", subdirectory = "src"}
mypy = [{path = "packages/own", marker = "sys_platform == 'linux'"}]
"""


def test_a_project_has_dependencies_extras_and_groups(project: Path) -> None:
    """Extras may name extras, groups may include groups, and uv's sources and indexes are followed."""
    path = project / "pyproject.toml"
    path.write_text(PROJECT)
    plain = ("--extra-index-url https://example.org/wheels", "six>=1", "torch")
    constraint = ("--constraint-line 'urllib3<2'",)
    assert read((f"-r {path}",)) == plain + constraint
    fast = ("idna", "attrs @ git+https://example.org/attrs@v1#subdirectory=src")
    assert read((f"-r {path} --extra FAST",)) == plain + fast + constraint
    test = ("iniconfig", f"mypy @ file://{project}/packages/own ; (sys_platform == 'linux')")
    assert read((f"-r {path} --group test",)) == plain + test + constraint


def test_the_index_is_not_asked_for_the_project_itself(project: Path) -> None:
    """Its own name stands for its extras, wherever it is: its modules travel, and the name may be a stranger's there."""
    path = project / "pyproject.toml"
    path.write_text(
        '[project]\nname = "Own"\ndependencies = ["own", "six"]\n[project.optional-dependencies]\n'
        'a = ["idna>=2; os_name == \'x\'"]\nall = ["own[a]>=1; python_version > \'3\'", "own", "own[all]"]\n'
        '[dependency-groups]\ndev = ["own[a]"]\n'
    )
    both = "idna>=2 ; (os_name == 'x') and (python_version > '3')"
    assert read((f"-r {path} --extra all",)) == ("six", both)
    assert read((f"-r {path} --group dev",)) == ("six", "idna>=2; os_name == 'x'")


def test_dynamic_dependencies_are_read_where_setuptools_names_a_file(project: Path) -> None:
    """A file that setuptools reads is read here too; other dynamic dependencies are refused by name."""
    path = project / "pyproject.toml"
    path.write_text(
        '[project]\nname="a"\ndynamic=["dependencies"]\n'
        '[tool.setuptools.dynamic]\ndependencies={file=["requirements.txt"]}\n'
    )
    (project / "requirements.txt").write_text("six\n")
    assert read((f"-r {path}",)) == ("six",)
    path.write_text('[project]\nname="a"\ndynamic=["dependencies"]\n')
    with pytest.raises(EnvironmentBuildError, match="are dynamic"):
        read((f"-r {path}",))


PYLOCK = f"""
lock-version = "1.0"
created-by = "a tool"
dependency-groups = ["base", "test"]
default-groups = ["base"]
[[packages]]
name = "six"
version = "1.16.0"
marker = "'base' in dependency_groups and python_version > '3'"
wheels = [{{url = "https://example.org/six.whl", hashes = {{sha256 = "{"0" * 64}"}}}}]
[[packages]]
name = "pytest"
version = "9"
marker = "'test' in dependency_groups"
[[packages]]
name = "repo"
vcs = {{type = "git", url = "https://example.org/repo", commit-id = "abc", subdirectory = "in"}}
[[packages]]
name = "own"
directory = {{path = "."}}
[[packages]]
name = "inner"
directory = {{path = "packages/own", editable = true}}
"""


def test_a_pylock_gives_versions_hashes_and_sources(project: Path) -> None:
    """Extras and groups are decided here; the project itself is left out, since its modules travel."""
    path = project / "pylock.toml"
    path.write_text(PYLOCK)
    found = read((f"-r {path}",))
    assert found == (
        f"six==1.16.0 ; python_version >= \"0\" and python_version > '3' --hash={HASH}",
        "repo @ git+https://example.org/repo@abc#subdirectory=in",
        f"inner @ file://{project}/packages/own",
    )
    assert any(entry.startswith("pytest==9") for entry in read((f"-r {path} --group test",)))
    parse(found)


def test_a_uv_lock_gives_the_versions_that_uv_locked(tmp_path: Path) -> None:
    """The versions and hashes of the lock, without the project; groups only where they are named."""
    uv = shutil.which("uv", path=os.path.dirname(os.sys.executable)) or shutil.which("uv")  # type: ignore[attr-defined]
    assert uv is not None
    for name in ("base", "tool"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pyproject.toml").write_text(f'[project]\nname="{name}"\nversion="1"\n')
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname="own"\nversion="1"\nrequires-python=">=3.11"\ndependencies=["base"]\n'
        '[dependency-groups]\ndev=["tool"]\n[tool.uv.sources]\nbase={path="base"}\ntool={path="tool"}\n'
    )
    subprocess.run([uv, "lock", "--offline", "-q", "--no-config"], cwd=tmp_path, check=True)
    assert read((f"-r {tmp_path}/uv.lock",)) == (f"{tmp_path}/base",)
    assert read((f"-r {tmp_path}/uv.lock --group dev",)) == (f"{tmp_path}/base", f"{tmp_path}/tool")
    path = tmp_path / "pyproject.toml"
    path.write_text(path.read_text().replace('["base"]', '["base", "later"]'))
    with pytest.raises(EnvironmentBuildError, match=r"older than its `pyproject\.toml`: it lacks `later`"):
        read((f"-r {tmp_path}/uv.lock",))
    (tmp_path / "uv.lock").write_text("version = 99\n")
    with pytest.raises(EnvironmentBuildError, match=r"uv\.lock` cannot be read"):
        read((f"-r {tmp_path}/uv.lock",))


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        ("no.txt", None, "", "there is no file `/P/no.txt`"),
        ("pyproject.toml", "[project", "", "cannot be understood"),
        ("pyproject.toml", "[tool.poetry.dependencies]\n", "", r"no `\[project\]` table"),
        ("pyproject.toml", '[project]\ndependencies="six"\n', "", "is not a list of texts"),
        ("pyproject.toml", '[project]\nname="a"\n', " --extra x", "has no extra `x`"),
        ("pyproject.toml", '[dependency-groups]\na=[{include-group="a"}]\n', " --group a", "includes itself"),
        ("pyproject.toml", '[project]\nname="a"\n', " --all x", "unknown option `--all`"),
        ("requirements.txt", "-r requirements.txt\n", "", "includes itself"),
        ("requirements.txt", "six\n", " --extra x", "has no parts"),
        ("pylock.toml", 'lock-version="2.0"\n', "", "no lock file of version 1"),
        ("pylock.toml", 'lock-version="1.0"\nextras=["a"]\n', " --extra b", "has no extra `b`"),
        ("pylock.toml", 'lock-version="1.0"\nrequires-python=">=3.99"\n', "", "is for Python >=3.99"),
        ("pylock.toml", 'lock-version="1.0"\nenvironments=["os_name == \'none\'"]\n', "", "for other machines"),
        ("pyproject.toml", '[project]\nname="a"\nrequires-python="<3"\n', "", "is for Python <3"),
        ("pyproject.toml", '[project]\nname="a"\ndynamic=["optional-dependencies"]\n', " --extra x", "are dynamic"),
        ("README.md", "", "", "none of requirements"),
        ("big.txt", "x" * (files.MAX_BYTES + 1), "", "has more than 8 MiB"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    tmp_path: Path, name: str, text: str | None, options: str, message: str
) -> None:
    """The error names the file, and the part of it."""
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(EnvironmentBuildError) as caught:
        read((f"-r {tmp_path}/{name}{options}",))

    assert re.search(message, str(caught.value).replace(str(tmp_path), "/P"))
    assert caught.value.hint


@pytest.mark.parametrize(
    "entry",
    [
        *("pyproject.toml", "requirements.txt", "poetry.lock", "uv.lock", "setup.py", "Pipfile", "a-1.tar.gz"),
        *(
            "README.md",
            "Readme.rst",
            "environment.yml",
            "main.py",
            "requirements",
            "requirements-dev",
            "dev-requirements",
        ),
    ],
)
def test_the_index_is_never_asked_for_a_file_name(entry: str) -> None:
    """The daemon refuses the name of a file, by which anyone could have published a package."""
    with pytest.raises(EnvironmentBuildError, match="is the name of a file"):
        parse([entry])


def test_packages_with_a_dot_are_packages() -> None:
    """`ruamel.yaml` is a name like any other, and `discord.py` is one unless the project has such a file."""
    assert parse(["ruamel.yaml", "zope.interface>=5"]).packages == ("ruamel-yaml", "zope-interface>=5")
    assert parse(["discord.py", "web.py>=1"]).packages == ("discord-py", "web-py>=1")


def test_a_file_of_the_project_is_no_package(tmp_path: Path) -> None:
    """A plain name that is a file beside the program is refused by the caller already."""
    (tmp_path / "data.json").touch()
    assert absolute(["discord.py", "six"], (str(tmp_path),)) == ("discord.py", "six")
    (entry,) = absolute(["data.json"], (str(tmp_path),))
    with pytest.raises(EnvironmentBuildError, match=r"data\.json`, which is none of requirements"):
        read((entry,))


def test_short_options_may_have_their_value_attached(project: Path) -> None:
    """`-rrequirements.txt` is read as pip reads it, and a list may hold paths."""
    assert absolute(["-rrequirements.txt", "-fwheels"], (str(project),)) == (
        f"-r {project}/requirements.txt",
        f"-f {project}/wheels",
    )
    assert Options().with_changes({"requirements": [project / "requirements.txt"]}).requirements


def test_constraints_are_no_requirements() -> None:
    """They count for the key and the builder, and a function may give them only for the network's packages."""
    parsed = parse(["six", "--constraint-line 'idna<3'"])
    assert (parsed.packages, parsed.constraints) == (("six",), ("idna<3",))
    refuse_host_paths(parsed)
    with pytest.raises(EnvironmentBuildError, match="names no path"):
        parse(["--constraint-line 'a @ file:///etc'"])
    with pytest.raises(EnvironmentBuildError, match="inside a sandbox"):
        refuse_host_paths(parse(["git+file:///srv/repo"]))


def test_a_repository_has_a_revision_and_a_subdirectory() -> None:
    """Its path, revision and name are kept apart."""
    (found,) = parse(["own[x] @ git+file:///srv/repo@v1.0#subdirectory=in ; python_version > '3'"]).paths
    assert (found.path, found.revision, found.name, found.extras) == (
        "/srv/repo",
        "@v1.0#subdirectory=in",
        "own",
        ("x",),
    )
    assert found.entry("/in/repo") == 'own[x] @ git+file:///in/repo@v1.0#subdirectory=in ; python_version > "3"'
    with pytest.raises(EnvironmentBuildError, match="its revision"):
        parse(["git+file:///srv/repo@--upload-pack=evil"])


def test_an_edit_of_a_file_counts_at_the_next_call(project: Path) -> None:
    """The spec has the contents as they are now; a function that travels has them with it."""
    path = project / "requirements.txt"
    path.write_text("six\n")
    function = isolated(requirements=str(path))(len)
    assert function.environment_spec().requirements == ("six",)
    path.write_text("six\nidna\n")
    assert function.environment_spec().requirements == ("six", "idna")
    assert function.options.closed().requirements == ("six", "idna")
