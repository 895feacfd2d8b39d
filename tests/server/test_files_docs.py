"""The curl examples of `docs/server/files.md`, run on a real server."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ..conftest import ROOT
from .process import Server

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl, which is not installed here")

BODY = os.urandom(300_000)


def test_the_examples_with_curl_do_what_they_say(server: Server, tmp_path: Path) -> None:
    """Each line of the page succeeds, in order, and the files are those that it says."""
    page = (ROOT / "docs/server/files.md").read_text("utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    setting = next(block for block in blocks if block.startswith("URL=")).replace("https://lab.example", server.url)
    lines = [line for block in blocks if "curl" in block for line in block.splitlines()]
    assert len(lines) == 13
    (tmp_path / "model.bin").write_bytes(BODY)
    (tmp_path / "part1").write_bytes(BODY[:1000])
    (tmp_path / "part2").write_bytes(BODY[1000:2500])
    key_id, secret = server.key
    env = {
        **os.environ,
        "ATOLL_KEY_ID": key_id,
        "ATOLL_KEY_SECRET": secret,
        "CURL_CA_BUNDLE": str(server.ca_file),
        "SSL_CERT_FILE": str(server.ca_file),
    }
    printed = []
    for line in lines:
        if "-C -" in line:
            (tmp_path / "copy.bin").write_bytes(BODY[:1234])
        done = subprocess.run(
            ["bash", "-c", f"{setting}\n{line}"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        printed.append(done.stdout)
    assert (tmp_path / "copy.bin").read_bytes() == BODY
    assert (tmp_path / "head.bin").read_bytes() == BODY[:100]
    assert '"name":"model.bin"' in printed[4]
    assert '"received":1000' in printed[-2]
    assert server.ask("GET", "/v1/files/big")[1] == BODY[:2500]
    assert server.ask("GET", "/v1/files/models/")[0] == 404
    assert server.ask("DELETE", "/v1/files/big")[0] == 204
