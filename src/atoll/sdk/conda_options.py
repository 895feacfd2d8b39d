"""The options of conda environments, checked together and read: `packages`, `channels`, `env_yml`, `env_dict`, `pip`.

An `env_yml` is read when a call is made, so that the next call sees an edit of the file.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from atoll.errors import EnvironmentBuildError
from atoll.payload.project import working_directory

OPTIONS = ("packages", "channels", "env_yml", "env_dict", "pip")
"""The options that go with `kind="conda"` only."""
MAX_CHARACTERS = 1 << 20
"""The longest `environment.yml`."""

_KNOWN = ("name", "channels", "dependencies", "prefix", "platforms", "category")
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})


class Contents(NamedTuple):
    """The packages of an environment, with files as they are now; `requirements` for virtual environments only."""

    packages: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    pip: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()


def check(values: Mapping[str, Any]) -> None:
    """Refuse options that exclude each other.

    Args:
        values: the checked options by name.

    Raises:
        TypeError: names them, and the options to write instead.
    """
    if values["kind"] == "conda":
        if values["requirements"]:
            raise TypeError(
                "`requirements` goes with kind `virtualenv`; with kind `conda` write `packages=[...]`, or `pip=[...]` "
                "for packages of the package index"
            )
        if values["env_yml"] is not None and values["env_dict"] is not None:
            raise TypeError("give one of `env_yml` and `env_dict`, not both")
        return
    given = [name for name in OPTIONS if values[name]]
    if given:
        instead = "; with kind `virtualenv` write `requirements=[...]`" if given[0] in ("packages", "pip") else ""
        raise TypeError(f'`{given[0]}` goes with `kind="conda"`{instead}')


def contents(values: Mapping[str, Any]) -> Contents:
    """Return the parts of the environment, with files as they are now.

    `packages` and `pip` are added to the file's lists, and `channels` rank before its own.

    Raises:
        EnvironmentBuildError: the file cannot be read or understood.
    """
    if values["kind"] != "conda":
        return Contents(requirements=_read(values["requirements"]))
    listed = Contents()
    if values["env_dict"] is not None:
        listed = read_mapping(json.loads(values["env_dict"]))
    elif values["env_yml"] is not None:
        listed = read_file(values["env_yml"])
    return Contents(
        listed.packages + values["packages"],
        values["channels"] + listed.channels,
        _read(listed.pip + values["pip"]),
    )


def _read(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return requirements with the contents of the files that they name."""
    if not any(name.startswith(("-", "/")) or "file:" in name for name in names):
        return names
    from atoll.sdk.requirements import contents  # most functions name packages only

    return contents.read(names)


def read_file(path: str) -> Contents:
    """Return the contents of an `environment.yml`; relative paths in it are meant from its directory.

    Raises:
        EnvironmentBuildError: it cannot be read or understood.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
        return _read_text(text, os.path.dirname(path))
    except OSError as error:
        raise EnvironmentBuildError(
            f"cannot read `{path}`, which `env_yml` names: {(error.strerror or str(error)).lower()}",
            hint="check the path",
        ) from error
    except ModuleNotFoundError as error:  # inside a sandbox, where its daemon's own installation lacks PyYAML
        raise EnvironmentBuildError(
            f"cannot read `{path}`, which `env_yml` names: PyYAML is not installed here",
            hint="add `pyyaml` to the packages of the function that makes this call, or give `env_dict`",
        ) from error
    except ValueError as error:  # no UTF-8, or not of that form
        raise EnvironmentBuildError(
            f"cannot understand `{path}`, which `env_yml` names: {error}",
            hint="write `channels:` and `dependencies:` as `conda env export` does, or give `env_dict`",
        ) from error


@functools.lru_cache(maxsize=16)  # parsing takes longer than a warm call, and most files stay as they are
def _read_text(text: str, directory: str) -> Contents:
    return read_mapping(parse(text), directory)


def parse(text: str) -> Any:
    """Return the value of a YAML text: texts, lists, mappings, or None.

    Numbers and truth values stay texts: other readers turn a version such as `3.10` into `3.1`.

    Raises:
        ValueError: it is no YAML, has a name twice, or is too long or too deep; names the line.
        ModuleNotFoundError: PyYAML is not installed.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"it has more than {MAX_CHARACTERS} characters")
    yaml, loader = _yaml()
    try:
        found = yaml.load(text, loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ValueError(f"line {mark.line + 1}: {problem}" if mark is not None else problem) from error
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    return {} if found is None else found


@functools.cache
def _yaml() -> tuple[Any, Any]:
    """Return PyYAML and a loader that gives texts only; inside a sandbox that is Atoll's own copy."""
    try:
        import _atoll_yaml as yaml  # type: ignore[import-not-found]  # see `node.mounted_files`
    except ModuleNotFoundError:
        import yaml

    class Loader(yaml.BaseLoader):  # type: ignore[misc]  # the module is found at run time
        def construct_scalar(self, node: Any) -> Any:
            return None if node.style is None and node.value in _NULLS else super().construct_scalar(node)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for name in (name for name, _ in node.value if isinstance(name, yaml.ScalarNode)):
                if name.value in seen:
                    problem = f"`{name.value}` is there twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, name.start_mark)
                seen.add(name.value)
            return super().construct_mapping(node, deep)

    return yaml, Loader


def read_mapping(value: Mapping[str, Any], directory: str = "") -> Contents:
    """Return the contents of a mapping of the form of an `environment.yml`.

    Args:
        directory: the base of relative paths; empty for the working directory.

    Raises:
        ValueError: it is not of that form.
    """
    if not isinstance(value, Mapping):
        raise ValueError("it is not a mapping")
    for name in value:
        if name == "variables":
            raise ValueError("`variables` belongs to the function: write `env={...}`")
        if name not in _KNOWN:
            raise ValueError(f"unknown name `{name}`; known are {', '.join(_KNOWN)}")
    packages: list[str] = []
    pip: list[str] = []
    for entry in _list(value, "dependencies"):
        if isinstance(entry, str):
            packages.append(entry.strip())
        elif isinstance(entry, Mapping) and list(entry) == ["pip"] and not pip:
            pip += _texts(entry, "pip")
        else:
            raise ValueError(f"`dependencies` has {_short(entry)}; entries are texts, and one `pip: [...]`")
    from atoll.sdk.requirements import entries  # most functions have no such file

    channels = [absolute(entry, directory) for entry in _texts(value, "channels")]
    return Contents(tuple(packages), tuple(channels), entries.absolute(pip, (directory or working_directory(),)))


def _list(value: Mapping[str, Any], name: str) -> Iterable[Any]:
    found = value.get(name)
    if found is None:
        return ()
    if isinstance(found, (str, bytes, Mapping)) or not isinstance(found, Iterable):
        raise ValueError(f"`{name}` is not a list")
    return found


def _texts(value: Mapping[str, Any], name: str) -> list[str]:
    found = list(_list(value, name))
    for entry in found:
        if not isinstance(entry, str) or "\0" in entry:
            raise ValueError(f"`{name}` has {_short(entry)}, which is not a text")
    return [entry.strip() for entry in found if entry.strip()]


def _short(entry: Any) -> str:
    import reprlib

    shortened = reprlib.Repr()  # aliases of YAML let a short file hold a value that prints without end
    shortened.maxlevel = 2
    return shortened.repr(entry)


def absolute(entry: str, directory: str = "") -> str:
    """Make a local path absolute: the daemon has another working directory."""
    if entry.startswith(("./", "../", "~/")) or entry in (".", ".."):
        return _join(directory, entry)
    return entry


def _join(directory: str, path: str) -> str:
    return os.path.abspath(os.path.join(directory, os.path.expanduser(path)))


def env_dict(name: str, value: Any) -> str:
    """Return the option `env_dict` as JSON.

    Raises:
        ValueError: it describes no environment.
    """
    import json

    try:
        found = read_mapping(value)
    except ValueError as error:
        raise ValueError(f"`{name}` cannot be used: {error}") from error
    return json.dumps({"channels": found.channels, "dependencies": [*found.packages, {"pip": found.pip}]})
