"""Two users of a real server and a real index with passwords: neither gets what the other's credentials have fetched."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import ROOT, needs_outbound, own_home
from ..environments import Index
from ..server.machines import CLIENT, COMMAND, SERVER, serving, two_machines, user_of

pytestmark = [pytest.mark.root, needs_outbound]

PORT, INDEX_PORT = 8080, 8081

INDEX = f"""
import functools, http.server, sys
from tests.environments import Index

class Counted(Index):
    def do_GET(self):
        print(self.path, flush=True)
        super().do_GET()

handler = functools.partial(Counted, directory=sys.argv[1])
http.server.ThreadingHTTPServer(("{CLIENT}", {INDEX_PORT}), handler).serve_forever()
"""

PROGRAM = f"""
import json, os, sys
from atoll import cloud, errors, isolated
from atoll.model.specs import EnvironmentSpec

def version():
    import secretive
    return secretive.VERSION

for login, offline, *requirements in json.loads(sys.argv[1]):
    os.environ.update(UV_DEFAULT_INDEX=f"http://{{login}}{CLIENT}:{INDEX_PORT}/", UV_OFFLINE=offline)
    try:
        if requirements[0].startswith("atoll-upload:"):  # as no client of ours asks
            spec = EnvironmentSpec(requirements=tuple(requirements))
            print("has", cloud.request("environments.build", {{"environment": spec.to_data()}})["environment"]["key"] != "")
        else:
            print("has", isolated(host=cloud, requirements=requirements)(version)())
    except errors.EnvironmentBuildError as error:
        print("refused", str(error).replace("\\n", " "))
"""


def test_what_one_users_credentials_fetch_is_nobody_elses(tmp_path: Path) -> None:
    """Who has no password, a wrong one or none but a cache gets nothing; who has it fetches anew. Uploads are as separate."""
    from ..environments import Machine

    packages = Machine(tmp_path)
    wheel = packages.wheel("secretive")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (tmp_path / "program.py").write_text(PROGRAM)
    with contextlib.ExitStack() as stack:
        there, here = stack.enter_context(two_machines())
        home = stack.enter_context(own_home())
        (home.path / "settings.toml").write_text(f'[users]\nreachable = ["{CLIENT}/32"]\n')
        fetched = tmp_path / "index.log"
        index = [sys.executable, "-c", INDEX, str(packages.wheels)]
        stack.enter_context(serving(here, index, fetched, {**os.environ, "PYTHONPATH": str(ROOT)}, INDEX_PORT))
        command = [sys.executable, "-c", COMMAND, "server", "--listen", f"{SERVER}:{PORT}"]
        stack.enter_context(serving(there, command, home.path / "server.log", home.environment(), PORT))
        people = {name: user_of(home, name) for name in ("ada", "bob")}

        def run(name: str, *cases: tuple[str, ...]) -> list[str]:
            environment = {
                **os.environ,
                **people[name],
                "ATOLL_HOST": f"http://{SERVER}:{PORT}",
                "ATOLL_HOME": str(tmp_path / name),
                "PIP_CONFIG_FILE": os.devnull,
                "PIP_FIND_LINKS": "",
            }
            done = subprocess.run(
                here.command(sys.executable, str(tmp_path / "program.py"), json.dumps(cases)),
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert done.returncode == 0, f"{done.stderr}\n{(home.path / 'server.log').read_text()[-3000:]}"
            assert Index.password not in done.stdout + done.stderr
            return done.stdout.splitlines()

        def count() -> int:
            return fetched.read_text().count("/secretive-1-py3-none-any.whl")

        known, wrong = (f"me:{Index.password}@", "", "secretive"), ("me:wrong@", "", "secretive")
        upload = ("", "", f"atoll-upload:{digest}/{wheel.name}", "--no-index")
        own = ("", "", str(wheel), "--no-index")
        assert run("ada", known, own, upload) == ["has 1", "has 1", "has True"]
        once = count()
        assert once
        answers = run("bob", wrong, ("", "", "secretive"), (wrong[0], "1", "secretive"), ("", "1", "secretive"), upload)
        assert [answer.split()[0] for answer in answers] == ["refused"] * 5
        assert "no longer on the server" in answers[-1]
        assert count() == once
        assert run("bob", known) == ["has 1"]
        assert count() > once, "not from her cache"
