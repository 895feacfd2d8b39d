"""The dependencies of a `pyproject.toml`: of the project, of its extras, and of its groups (PEP 621 and PEP 735).

The project itself is not among them, since its modules travel with each call. uv's table of sources is followed as far
as other tools have a word for a source: repositories, addresses, paths and named indexes.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from atoll.errors import EnvironmentBuildError
from atoll.sdk.requirements.entries import absolute
from atoll.sdk.requirements.files import CONSTRAINT


def read(path: str, text: str, options: Sequence[str]) -> tuple[str, ...]:
    """Return the entries of a project.

    Args:
        path: of the file, for messages and as the base of relative paths.
        text: its contents.
        options: pairs of `--extra` or `--group` and a name.

    Raises:
        EnvironmentBuildError: the file cannot be understood, or has no such part.
    """
    return _read(path, text, tuple(options))


@functools.lru_cache(maxsize=16)
def _read(path: str, text: str, options: tuple[str, ...]) -> tuple[str, ...]:
    parts = parts_of(path, options)
    data = parse(path, text)
    project = data.get("project")
    if project is None and not parts["--group"]:
        poetry = "poetry" in _table(data, "tool")
        raise EnvironmentBuildError(
            f"`{path}` has no `[project]` table with dependencies",
            hint="`poetry export -f requirements.txt -o requirements.txt` makes a file that can be named instead"
            if poetry
            else "add one, or name a `requirements.txt`",
        )
    check_python(path, _table(data, "project").get("requires-python"))
    found: list[str] = []
    if project is not None:
        found += _without_own(path, _table(data, "project"), _dependencies(path, data))
        for extra in parts["--extra"]:
            found += _extra(path, _table(data, "project"), extra, ())
    for group in parts["--group"]:
        entries = _group(path, _table(data, "dependency-groups"), group, ())
        found += _without_own(path, _table(data, "project"), entries)
    uv = _table(_table(data, "tool"), "uv")
    if uv.get("override-dependencies"):
        raise EnvironmentBuildError(
            f"`{path}` has `override-dependencies`, which only uv knows",
            hint="run `uv lock`, and name `uv.lock` instead",
        )
    constraints = [f"{CONSTRAINT} {shlex.quote(line)}" for line in _texts(path, uv, "constraint-dependencies")]
    lines = [*indexes(path, uv), *_with_sources(path, uv, found), *constraints]
    return absolute(dict.fromkeys(lines), (os.path.dirname(path),))


def parse(path: str, text: str) -> dict[str, Any]:
    """Return the contents of a TOML file.

    Raises:
        EnvironmentBuildError: it is no TOML; names the line.
    """
    try:
        import tomllib

        return tomllib.loads(text)
    except ModuleNotFoundError as error:  # Python 3.10
        raise EnvironmentBuildError(
            f"`{path}` cannot be read by this Python, which has no `tomllib`", hint="use Python 3.11 or newer"
        ) from error
    except (ValueError, RecursionError) as error:
        raise EnvironmentBuildError(
            f"`{path}` cannot be understood: {str(error).lower() or 'it is nested too deep'}", hint="mend the file"
        ) from error


def parts_of(path: str, options: Sequence[str]) -> dict[str, list[str]]:
    """Return the named extras and groups, by their option.

    Raises:
        EnvironmentBuildError: there is another option.
    """
    parts: dict[str, list[str]] = {"--extra": [], "--group": []}
    for name, value in zip(options[::2], options[1::2], strict=False):
        if name not in parts:
            raise EnvironmentBuildError(f"unknown option `{name}` of `{path}`", hint="it has `--extra` and `--group`")
        parts[name] += [part.strip() for part in value.split(",") if part.strip()]
    return parts


def check_python(path: str, wanted: Any) -> None:
    """Refuse a file that is for other Pythons than this one.

    Raises:
        EnvironmentBuildError: names both.
    """
    if not isinstance(wanted, str) or not wanted.strip():
        return
    version = ".".join(map(str, sys.version_info[:3]))
    try:
        from atoll.environments.asked.python_range import fits

        if fits(wanted, version):
            return
    except ImportError:  # inside a sandbox without `packaging`
        return
    raise EnvironmentBuildError(
        f"`{path}` is for Python {wanted.strip()}, and the function has Python {version}",
        hint="run the program with a Python that fits, or change `requires-python`",
    )


def normal(name: str) -> str:
    """Return a package's, extra's or group's name in its normal form (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _table(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = data.get(name, {})
    return found if isinstance(found, Mapping) else {}


def _texts(path: str, data: Mapping[str, Any], name: str) -> list[str]:
    found = data.get(name, [])
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise EnvironmentBuildError(f"`{name}` in `{path}` is not a list of texts", hint="mend the file")
    return list(found)


def _dependencies(path: str, data: Mapping[str, Any]) -> list[str]:
    project = _table(data, "project")
    if "dependencies" not in _texts(path, project, "dynamic"):
        return _texts(path, project, "dependencies")
    dynamic = _table(_table(_table(_table(data, "tool"), "setuptools"), "dynamic"), "dependencies")
    files = dynamic.get("file")
    named = [files] if isinstance(files, str) else files
    if not isinstance(named, list) or not named:
        raise EnvironmentBuildError(
            f"the dependencies in `{path}` are dynamic: only the build of the project knows them",
            hint="list them under `[project]`, or name a `requirements.txt`",
        )
    return [f"-r {shlex.quote(str(file))}" for file in named]


def _extra(path: str, project: Mapping[str, Any], extra: str, within: tuple[str, ...]) -> Iterator[str]:
    tables = {normal(name): name for name in _table(project, "optional-dependencies")}
    if normal(extra) not in tables:
        if "optional-dependencies" in _texts(path, project, "dynamic"):
            raise EnvironmentBuildError(
                f"the extras in `{path}` are dynamic: only the build of the project knows them",
                hint="list them under `[project.optional-dependencies]`",
            )
        raise _no_part(path, "extra", extra, tables)
    entries = _texts(path, _table(project, "optional-dependencies"), tables[normal(extra)])
    yield from _without_own(path, project, entries, (*within, normal(extra)))


_OWN = re.compile(r"\s*([A-Za-z0-9][\w.-]*)\s*(?:\[([^\]]*)\])?[^;]*(?:;(.*))?$", re.DOTALL)


def _without_own(
    path: str, project: Mapping[str, Any], entries: Iterable[str], within: tuple[str, ...] = ()
) -> Iterator[str]:
    """Replace the project's own name: its modules travel, its extras are entries, and no index is asked for it."""
    own = normal(str(project.get("name", "")))
    for entry in entries:
        match = _OWN.match(entry)
        if match is None or not own or normal(match[1]) != own:
            yield entry
            continue
        for extra in filter(None, map(str.strip, (match[2] or "").split(","))):
            if normal(extra) not in within:
                for inner in _extra(path, project, extra, within):
                    yield _under(inner, (match[3] or "").strip())


def _under(entry: str, marker: str) -> str:
    """Return an entry that counts under a further condition."""
    if not marker or entry.startswith("-"):
        return entry
    bare, _, own = entry.partition(";")
    return f"{bare.rstrip()} ; {f'({own.strip()}) and ' if own.strip() else ''}({marker})"


def _group(path: str, groups: Mapping[str, Any], group: str, within: tuple[str, ...]) -> Iterator[str]:
    tables = {normal(name): name for name in groups}
    if normal(group) not in tables:
        raise _no_part(path, "group", group, tables)
    if normal(group) in within:
        raise EnvironmentBuildError(f"the group `{group}` in `{path}` includes itself", hint="mend the file")
    entries = groups[tables[normal(group)]]
    for entry in entries if isinstance(entries, list) else [entries]:
        if isinstance(entry, str):
            yield entry
        elif isinstance(entry, Mapping) and isinstance(entry.get("include-group"), str):
            yield from _group(path, groups, entry["include-group"], (*within, normal(group)))
        else:
            raise EnvironmentBuildError(f"the group `{group}` in `{path}` has {entry!r:.100}", hint="mend the file")


def _no_part(path: str, kind: str, name: str, known: Iterable[str]) -> EnvironmentBuildError:
    names = ", ".join(sorted(known))
    return EnvironmentBuildError(
        f"`{path}` has no {kind} `{name}`", hint=f"it has {names}" if names else f"it has no {kind}s"
    )


# --- uv's own tables ------------------------------------------------------------------------------------------------


def indexes(path: str, uv: Mapping[str, Any]) -> Iterator[str]:
    """Return the options for the indexes that uv's table names."""
    found = uv.get("index", [])
    for index in found if isinstance(found, list) else []:
        if isinstance(index, Mapping) and isinstance(index.get("url"), str):
            option = "--index-url" if index.get("default") is True else "--extra-index-url"
            yield f"{option} {shlex.quote(index['url'])}"
    for url in _texts(path, uv, "extra-index-url"):
        yield f"--extra-index-url {shlex.quote(url)}"
    if isinstance(uv.get("index-url"), str):
        yield f"--index-url {shlex.quote(uv['index-url'])}"
    for links in _texts(path, uv, "find-links"):
        yield f"--find-links {shlex.quote(links)}"


def _with_sources(path: str, uv: Mapping[str, Any], entries: Iterable[str]) -> Iterator[str]:
    sources = {normal(name): source for name, source in _table(uv, "sources").items()}
    for entry in entries:
        match = re.match(r"\s*([A-Za-z0-9][\w.-]*)\s*(\[[^\]]*\])?([^;]*)(;.*)?$", entry, re.DOTALL)
        source = sources.get(normal(match[1])) if match is not None else None
        if match is None or source is None:
            yield entry
            continue
        name, marker = match[1] + (match[2] or ""), (match[4] or "").lstrip("; ").strip()
        for one in source if isinstance(source, list) else [source]:
            where = _address(path, match[1], one)
            both = [f"({part})" for part in (marker, str(one.get("marker", ""))) if part]
            condition = f" ; {' and '.join(both)}" if both else ""
            yield entry if where is None else f"{name} @ {where}{condition}"
            if where is None:
                break


def _address(path: str, name: str, source: Any) -> str | None:
    """Return the address of a source; None for an index, which is among the others."""
    if not isinstance(source, Mapping):
        raise EnvironmentBuildError(f"the source of `{name}` in `{path}` is not a table", hint="mend the file")
    if isinstance(source.get("git"), str):
        revision = next((str(source[kind]) for kind in ("rev", "tag", "branch") if kind in source), "")
        address = source["git"] if source["git"].startswith("git+") else f"git+{source['git']}"
        inner = f"#subdirectory={source['subdirectory']}" if "subdirectory" in source else ""
        return address + (f"@{revision}" if revision else "") + inner
    if isinstance(source.get("url"), str):
        return str(source["url"]) + (f"#subdirectory={source['subdirectory']}" if "subdirectory" in source else "")
    if isinstance(source.get("path"), str):
        return f"file://{os.path.normpath(os.path.join(os.path.dirname(path), source['path']))}"
    if "index" in source:
        return None
    raise EnvironmentBuildError(
        f"the source of `{name}` in `{path}` is one that only uv knows: {', '.join(map(str, source))}",
        hint="run `uv lock`, and name `uv.lock` instead",
    )
