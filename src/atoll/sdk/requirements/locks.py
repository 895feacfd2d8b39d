"""Lock files of the project: uv's own, read by `uv export`, and `pylock.toml` (PEP 751)."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from atoll.errors import EnvironmentBuildError
from atoll.sdk.requirements.entries import absolute
from atoll.sdk.requirements.files import lines, text_of
from atoll.sdk.requirements.projects import check_python, indexes, normal, parse, parts_of

_TRUE, _FALSE = 'python_version >= "0"', 'python_version < "0"'


def read_uv_lock(path: str, text: str, options: Sequence[str]) -> tuple[str, ...]:
    """Return the entries of a `uv.lock`: the project's dependencies with their hashes, without the project.

    Args:
        path, text: of the file.
        options: pairs of `--extra` or `--group` and a name; groups count only where they are named.

    Raises:
        EnvironmentBuildError: uv is not here, or cannot read the file.
    """
    parts_of(path, options)
    project = os.path.join(os.path.dirname(path), "pyproject.toml")
    return _exported(path, text, text_of(project), tuple(options))


@functools.lru_cache(maxsize=16)  # uv takes 15 ms
def _exported(path: str, text: str, project: str, options: tuple[str, ...]) -> tuple[str, ...]:
    from atoll.environments.build import uv_lock  # only for files of this kind

    done = uv_lock.export(os.path.dirname(path), options)
    if done.status != 0:
        reason = next((line for line in done.output.splitlines() if line.startswith("error: ")), done.output.strip())
        raise EnvironmentBuildError(
            f"`{path}` cannot be read: {reason.removeprefix('error: ')[:1000].lower()}",
            hint="check the names of extras and groups, or run `uv lock` again",
        )
    _check_age(path, text, project)
    uv = parse(path, project).get("tool", {}).get("uv", {})
    own = absolute(indexes(path, uv), (os.path.dirname(path),))
    return (*own, *lines(done.output, path, variables=False))


def read_pylock(path: str, text: str, options: Sequence[str]) -> tuple[str, ...]:
    """Return the entries of a `pylock.toml`: each package's version with its hashes, or its address.

    Args:
        path, text: of the file.
        options: pairs of `--extra` or `--group` and a name.

    Raises:
        EnvironmentBuildError: the file cannot be understood.
    """
    return _read_pylock(path, text, tuple(options))


@functools.lru_cache(maxsize=16)
def _read_pylock(path: str, text: str, options: tuple[str, ...]) -> tuple[str, ...]:
    parts = parts_of(path, options)
    data = parse(path, text)
    version, packages = str(data.get("lock-version", "")), data.get("packages", [])
    if not version.startswith("1.") or not isinstance(packages, list):
        raise EnvironmentBuildError(
            f"`{path}` is no lock file of version 1, as PEP 751 describes", hint="export it again"
        )
    check_python(path, data.get("requires-python"))
    _check_environments(path, data.get("environments"))
    for option, name in (("--extra", "extras"), ("--group", "dependency-groups")):
        known = {normal(str(part)) for part in data.get(name) or []}
        for part in parts[option]:
            if normal(part) not in known:
                raise EnvironmentBuildError(
                    f"`{path}` has no {option[2:]} `{part}`",
                    hint=f"it has {', '.join(sorted(known))}" if known else f"it was made without any {option[2:]}",
                )
    groups = [*parts["--group"], *(data.get("default-groups") or [])]
    chosen = {"extras": {normal(name) for name in parts["--extra"]}, "dependency_groups": set(map(normal, groups))}
    found = [entry for package in packages for entry in _package(path, package, chosen)]
    return absolute(found, (os.path.dirname(path),))


def _check_environments(path: str, markers: Any) -> None:
    """Refuse a lock file that was made for other machines."""
    if not isinstance(markers, list) or not markers:
        return
    try:
        from atoll.environments.asked.python_range import holds

        if holds(map(str, markers)):
            return
    except ImportError:  # inside a sandbox without `packaging`
        return
    raise EnvironmentBuildError(
        f"`{path}` was locked for other machines: {' or '.join(map(str, markers))[:500]}", hint="lock it for this one"
    )


def _check_age(path: str, text: str, project: str) -> None:
    """Refuse a lock that lacks a dependency of its project: it was added since."""
    own = parse(os.path.join(os.path.dirname(path), "pyproject.toml"), project).get("project", {})
    listed = [
        *(own.get("dependencies") or []),
        *(one for part in (own.get("optional-dependencies") or {}).values() for one in part),
    ]
    wanted = {normal(match[0]) for one in listed if (match := re.match(r"[A-Za-z0-9][\w.-]*", str(one).strip()))}
    for package in parse(path, text).get("package", []):
        if normal(str(package.get("name", ""))) == normal(str(own.get("name", ""))):
            locked = {normal(str(one.get("name", ""))) for one in package.get("metadata", {}).get("requires-dist", [])}
            if missing := sorted(wanted - locked - {normal(str(own.get("name", "")))}):
                raise EnvironmentBuildError(
                    f"`{path}` is older than its `pyproject.toml`: it lacks `{'`, `'.join(missing[:5])}`",
                    hint="run `uv lock`",
                )


def _package(path: str, package: Any, chosen: Mapping[str, set[str]]) -> Iterator[str]:
    if not isinstance(package, Mapping) or not isinstance(package.get("name"), str):
        raise EnvironmentBuildError(f"`{path}` has a package without a name", hint="export it again")
    name = package["name"]
    marker = _with_parts(str(package.get("marker", "")), chosen)
    if marker == _FALSE:
        return
    condition = f" ; {marker}" if marker and marker != _TRUE else ""
    if isinstance(package.get("vcs"), Mapping):
        yield f"{name} @ {_repository(package['vcs'])}{condition}"
    elif isinstance(package.get("directory"), Mapping):
        where = os.path.normpath(os.path.join(os.path.dirname(path), str(package["directory"].get("path", ""))))
        if where != os.path.dirname(path):  # the project itself, whose modules travel
            yield f"{name} @ file://{where}{condition}"
    elif isinstance(package.get("archive"), Mapping):
        archive = package["archive"]
        where = archive.get("url") or "file://" + os.path.join(os.path.dirname(path), str(archive.get("path", "")))
        yield f"{name} @ {where}{condition}"
    elif isinstance(package.get("version"), str):
        files = [*(package.get("wheels") or []), *([package["sdist"]] if package.get("sdist") else [])]
        hashes = {f"{kind}:{value}" for file in files for kind, value in (file.get("hashes") or {}).items()}
        yield f"{name}=={package['version']}{condition}" + "".join(f" --hash={one}" for one in sorted(hashes))
    else:
        raise EnvironmentBuildError(
            f"`{name}` in `{path}` has neither a version nor a source", hint="export the file again"
        )


def _repository(source: Mapping[str, Any]) -> str:
    address = source.get("url") or f"file://{source.get('path', '')}"
    inner = f"#subdirectory={source['subdirectory']}" if source.get("subdirectory") else ""
    return f"{source.get('type', 'git')}+{address}@{source.get('commit-id', '')}{inner}"


def _with_parts(marker: str, chosen: Mapping[str, set[str]]) -> str:
    """Return a marker without tests for extras and groups, which other tools do not know: each becomes true or false."""

    def answer(match: re.Match[str]) -> str:
        name, negated, where = match[2], match[3], match[4]
        return _TRUE if (normal(name) in chosen[where]) != bool(negated) else _FALSE

    return re.sub(r"""(["'])([^"']*)\1\s+(not\s+)?in\s+(extras|dependency_groups)\b""", answer, marker).strip()
