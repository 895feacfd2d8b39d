"""The program that solves, fetches and links a conda environment: rattler's part of a build.

It runs inside the builder's sandbox, as a file of its own beside the package `rattler`, and knows nothing else of
Atoll. `solve` reads repodata and writes the shared cache: it opens no package. `link` unpacks packages into an
environment, and runs their link scripts: it sees that environment alone. (See docs/decisions/0008.)

Usage: `program.py solve|link REQUEST`, a JSON file. Progress is printed; the last line is `RESULT` or
`FAILED` and JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

RESULT = "atoll-result "
FAILED = "atoll-failed "

SOLVE_MINUTES = 20
"""Time limit of the solver."""

DOWNLOADS = 8
"""Concurrent downloads."""

CACHE = Path("/opt/atoll-conda")
ARCHIVES = Path("/opt/atoll-archives")
PREFIX = Path("/opt/atoll/env")


class Unusable(Exception):
    """A package differs from its channel's description."""


async def solve(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Solve, and fetch each package into the cache; return their facts."""
    import rattler

    print("Resolving", flush=True)
    client = rattler.Client.default_client()
    action: Any = request["cache_action"]
    gateway = rattler.Gateway(
        cache_dir=Path(request["repodata"]), client=client, default_config=rattler.SourceConfig(cache_action=action)
    )
    overrides = rattler.VirtualPackageOverrides()
    for name, value in request["virtual"].items():
        setattr(overrides, name, rattler.Override.string(value))
    constraints = [rattler.MatchSpec(text) for text in request["constraints"]]
    records = await rattler.solve(
        sources=request["channels"],
        specs=[rattler.MatchSpec(text) for text in request["specs"]],
        gateway=gateway,
        virtual_packages=rattler.VirtualPackage.detect(overrides),
        constraints=constraints,
        timeout=dt.timedelta(minutes=SOLVE_MINUTES),
    )
    total = sum(record.size or 0 for record in records)
    print(f"Resolved {len(records)} packages, {_size(total)}", flush=True)
    limit = asyncio.Semaphore(DOWNLOADS)

    async def have(record: Any) -> dict[str, Any]:
        async with limit:
            return await _fetch(client, record)

    return list(await asyncio.gather(*(have(record) for record in records)))


async def _fetch(client: Any, record: Any) -> dict[str, Any]:
    """Fetch one package into the cache, under its digest; return its facts."""
    name, version = record.name.normalized, str(record.version)
    file = unquote(os.path.basename(urlsplit(record.url).path))
    wanted = record.sha256.hex() if record.sha256 else ""
    path = CACHE / "archives" / wanted / file
    if not wanted or not path.is_file():
        print(f"Downloading {name} {version} ({_size(record.size or 0)})", flush=True)
        wanted = await _download(client, record, file, wanted)
        print(f"Downloaded {name}", flush=True)
    return {
        "name": name,
        "version": version,
        "build": str(record.build),
        "channel": str(record.channel or ""),
        "url": record.url,
        "sha256": wanted,
        "file": file,
    }


async def _download(client: Any, record: Any, file: str, wanted: str) -> str:
    from rattler.package_streaming import download_to_path

    directory = Path(tempfile.mkdtemp(prefix=".new-", dir=CACHE / "archives"))
    try:
        path = directory / file
        parts = urlsplit(record.url)
        if parts.scheme == "file":
            await asyncio.to_thread(shutil.copyfile, unquote(parts.path), path)
        else:
            await download_to_path(client, record.url, path)
        found = await asyncio.to_thread(_digest, path, "sha256")
        if wanted and found != wanted:
            raise Unusable(f"{file} has another SHA-256 digest than its channel says")
        if not wanted and record.md5 and await asyncio.to_thread(_digest, path, "md5") != record.md5.hex():
            raise Unusable(f"{file} has another MD5 digest than its channel says")
        target = CACHE / "archives" / found
        target.mkdir(exist_ok=True)
        os.chmod(path, 0o644)
        os.replace(path, target / file)
        return found
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _digest(path: Path, kind: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def _size(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.1f} MiB"


async def link(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Unpack the packages, each of the digest that was solved for, into the environment."""
    import rattler

    packages: list[dict[str, Any]] = request["packages"]
    records = []
    for package in packages:
        path = ARCHIVES / package["sha256"] / package["file"]
        if _digest(path, "sha256") != package["sha256"]:
            raise Unusable(f"{package['file']} has changed in the cache")
        records.append(await rattler.RepoDataRecord.from_package_archive(path))
    print(f"Linking {len(records)} packages", flush=True)
    await rattler.install(
        records,
        target_prefix=PREFIX,
        cache_dir=PREFIX.parent / "packages",
        execute_link_scripts=True,
        show_progress=False,
    )
    for package in packages:
        _tell_origin(package)
    return []


def _tell_origin(package: dict[str, Any]) -> None:
    """Let the package's record name its channel instead of where it lay while it was linked."""
    path = PREFIX / "conda-meta" / f"{package['name']}-{package['version']}-{package['build']}.json"
    with contextlib.suppress(OSError, ValueError):
        record = json.loads(path.read_text("utf-8"))
        record.update(url=package["url"], channel=package["channel"])
        record.pop("extracted_package_dir", None)
        record.pop("link", None)
        path.write_text(json.dumps(record, indent=2), "utf-8")


def main() -> int:
    """Run the action of the arguments; return the exit status."""
    action, file = sys.argv[1:]
    with open(file, encoding="utf-8") as opened:
        request = json.load(opened)
    try:
        found = asyncio.run(solve(request) if action == "solve" else link(request))
    except Exception as error:
        print(FAILED + json.dumps({"kind": type(error).__name__, "message": str(error)}), flush=True)
        return 3
    print(RESULT + json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # rattler's threads may still run, and end an interpreter that finalizes with SIGABRT
