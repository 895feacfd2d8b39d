"""`atoll://USER@HOST/…`: files of a server for programs that know fsspec."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from atoll import Host, credentials, errors
from atoll.server.accounts.bodies import NewUser

from .process import Server


@pytest.fixture
def address(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The address of a user's files; the key is that of a login."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("ATOLL_HOST", raising=False)
    key = server.add_user(NewUser(f"files-{server.port}-{len(server.log.read_bytes())}")).key
    assert key is not None
    credentials.store(credentials.Credentials(server.url, key.id, key.secret, str(server.ca_file)))
    host = Host(server.url)
    name: str = host.server.ask("GET", "/v1/whoami")["name"]
    return f"atoll://{name}@127.0.0.1:{server.port}"


_PROGRAM = """
import pickle, sys
import fsspec, pandas, pyarrow.parquet, zarr

address = sys.argv[1]
pandas.DataFrame({"n": [1, 2, 3]}).to_parquet(f"{address}/tables/a.parquet")
assert pandas.read_parquet(f"{address}/tables/a.parquet").n.sum() == 6
fs, path = fsspec.url_to_fs(f"{address}/tables")
assert pyarrow.parquet.read_table(f"{path}/a.parquet", filesystem=fs).num_rows == 3
array = zarr.open(f"{address}/arrays/z", mode="w", shape=(100,), chunks=(10,), dtype="i4")
array[:] = 7
assert int(zarr.open(f"{address}/arrays/z", mode="r")[:].sum()) == 700
assert fs.find("/data/tables") == ["/data/tables/a.parquet"]
listed = pickle.loads(pickle.dumps(fs)).unstrip_protocol("/data/tables/a.parquet")
assert listed == f"{address}/tables/a.parquet"
with fsspec.open(listed, "rb") as file:
    assert file.read(4) == b"PAR1"
print("all of it")
"""


def test_libraries_read_and_write_files_of_a_server(address: str) -> None:
    """pandas, PyArrow and Zarr by the address alone; names that are listed lead back to it."""
    for name in ("pandas", "zarr", "pyarrow"):
        pytest.importorskip(name)
    run = subprocess.run(
        [sys.executable, "-c", _PROGRAM, address], check=False, capture_output=True, text=True, timeout=120
    )
    assert (run.returncode, run.stdout) == (0, "all of it\n"), run.stderr


def test_the_user_of_an_address_is_who_asks(server: Server, address: str) -> None:
    """Another name is refused with the own one; a host with the other user's key is taken."""
    fs, path = fsspec.url_to_fs(f"atoll://operator@127.0.0.1:{server.port}/a")
    own = address.partition("@")[0].removeprefix("atoll://")
    with pytest.raises(errors.NotAuthorized, match=f"names the user `operator`, and at .* you are `{own}`") as caught:
        fs.exists(path)
    assert f"atoll://{own}@" in caught.value.hint
    key_id, key_secret = server.key
    host = Host(server.url, key_id=key_id, key_secret=key_secret, ca_file=str(server.ca_file))
    fs, path = fsspec.url_to_fs(f"atoll://operator@127.0.0.1:{server.port}/of-operator", host=host)
    fs.pipe_file(path, b"text")
    assert fs.cat_file(path) == b"text"
    with fsspec.open("atoll://of-operator", "rb", host=host) as file:
        assert file.read() == b"text"
    assert not fsspec.filesystem("atoll", host=server.url).exists("/data/of-operator")
    fs.volume.close()
    fsspec.filesystem("atoll", host=server.url).volume.close()
