"""A real issuer of identities, npm's `oidc-provider`, and a person who confirms a code at it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ..waiting import PATIENCE_SECONDS

FILES = Path(__file__).parent / "issuer"
NAMES = ("package.json", "package-lock.json", "provider.mjs")


def _installed() -> Path:
    """Return a directory with the locked packages, installed once for each virtual environment."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("needs `node` and `npm`")
    contents = [(FILES / name).read_bytes() for name in NAMES]
    place = Path(sys.prefix) / "tools" / f"issuer-{hashlib.sha256(b''.join(contents)).hexdigest()[:16]}"
    if place.is_dir():
        return place
    place.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".issuer-", dir=place.parent) as name:
        new = Path(name) / "new"
        new.mkdir()
        for file, content in zip(NAMES, contents, strict=True):
            (new / file).write_bytes(content)
        try:
            command = [npm, "ci", "--ignore-scripts", "--prefer-offline", "--no-audit", "--no-fund"]
            done = subprocess.run(command, cwd=new, capture_output=True, text=True, timeout=60, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip("needs npm's registry, which does not answer")
        if done.returncode != 0:
            pytest.skip(f"needs npm's registry: {done.stderr.strip()[-200:]}")
        with contextlib.suppress(OSError):  # another process was first
            os.rename(new, place)
    return place


@contextlib.contextmanager
def running() -> Iterator[str]:
    """Run the issuer on loopback, and give its address."""
    place = _installed()
    with subprocess.Popen(
        ["node", "provider.mjs"],
        cwd=place,
        stdin=subprocess.PIPE,  # it ends with this pipe
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            if not address:
                pytest.skip("`oidc-provider` does not run with this `node`")
            yield address
        finally:
            process.kill()
            process.wait(PATIENCE_SECONDS)


def confirm(page: str, name: str, *, refuse: bool = False) -> None:
    """Log in as a person at the issuer, and confirm the code that a page's address has, or refuse it."""
    with httpx.Client(follow_redirects=True, timeout=60) as browser:
        answer = browser.get(page)
        action, fields = _form(answer)
        answer = browser.post(action, data=fields)
        if refuse:
            action, fields = _form(answer)
            browser.post(action, data={**fields, "abort": "yes"})
            return
        action, fields = _form(answer)
        answer = browser.post(action, data={**fields, "confirm": "yes"}) if "user_code" in fields else answer
        for extra in ({"login": name, "password": "any"}, {}):
            action, fields = _form(answer)
            answer = browser.post(action, data={**fields, **extra})
        assert answer.status_code == 200, answer.text
        assert "Sign-in Success" in answer.text, answer.text


def _form(answer: httpx.Response) -> tuple[str, dict[str, str]]:
    action = re.search(r'action="([^"]+)"', answer.text)
    assert action is not None, answer.text
    tags = re.findall(r"<(?:input|button)[^>]*>", answer.text)
    found = {}
    for tag in tags:
        name, value = re.search(r'name="([^"]*)"', tag), re.search(r'value="([^"]*)"', tag)
        if name is not None and value is not None and 'type="hidden"' in tag:
            found[name[1]] = value[1]
    return action[1], found
