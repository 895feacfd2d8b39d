"""`Volume` and `atoll://` with real daemons: programs that use them outside of functions, and functions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from atoll import Volume, isolated
from atoll.errors import DiskFull

from ..conftest import Home

pytestmark = pytest.mark.as_user

PANDAS = """
import pandas, numpy
frame = pandas.DataFrame({"a": numpy.arange(100_000), "b": numpy.random.default_rng(1).normal(size=100_000),
                          "c": [f"text {n % 7}" for n in range(100_000)]})
frame.to_parquet("atoll://programs/pandas.parquet")
pandas.testing.assert_frame_equal(pandas.read_parquet("atoll://programs/pandas.parquet"), frame)
column = pandas.read_parquet("atoll://programs/pandas.parquet", columns=["a"])
assert list(column.columns) == ["a"]
frame.to_csv("atoll://programs/pandas.csv.gz", index=False)
assert len(pandas.read_csv("atoll:///data/programs/pandas.csv.gz")) == len(frame)
frame.to_parquet("atoll://programs/parts", partition_cols=["c"])
assert len(pandas.read_parquet("atoll://programs/parts")) == len(frame)
import pyarrow.dataset
import fsspec
found = pyarrow.dataset.dataset("/data/programs/parts", filesystem=fsspec.filesystem("atoll"), partitioning="hive")
assert found.count_rows() == len(frame)
"""

DASK = """
import dask, dask.dataframe, pandas
if __name__ == "__main__":
    frame = pandas.DataFrame({"n": range(10_000), "g": [n % 5 for n in range(10_000)]})
    dask.dataframe.from_pandas(frame, npartitions=4).to_parquet("atoll://programs/dask")
    read = dask.dataframe.read_parquet("atoll://programs/dask")
    assert read.npartitions == 4
    assert list(read.groupby("g").n.count().compute(scheduler="threads")) == [2000] * 5
    read.to_csv("atoll://programs/dask-csv/*.csv", index=False)
    read = dask.dataframe.read_csv("atoll://programs/dask-csv/*.csv")
    assert int(read.n.sum().compute(scheduler="processes", num_workers=2)) == sum(range(10_000))
"""

ZARR = """
import numpy, zarr
from zarr.storage import FsspecStore
store = FsspecStore.from_url("atoll://programs/zarr")
group = zarr.create_group(store, overwrite=True)
values = numpy.arange(1_000_000, dtype="i4").reshape(1000, 1000)
array = group.create_array("values", shape=values.shape, chunks=(100, 250), dtype="i4")
array[:] = values
array.attrs["unit"] = "m"
group.create_group("below").create_array("x", shape=(3,), dtype="f8")[:] = [1, 2, 3]
again = zarr.open_group(FsspecStore.from_url("atoll://programs/zarr"), mode="r")
assert (again["values"][:] == values).all()
assert (again["values"][150:160, 240:260] == values[150:160, 240:260]).all()
assert again["values"].attrs["unit"] == "m"
assert sorted(again.keys()) == ["below", "values"]
assert again["below/x"][:].tolist() == [1, 2, 3]
again = zarr.open_group("atoll://programs/zarr", mode="a")
again["values"][0, 0] = -1
assert zarr.open_group("atoll://programs/zarr", mode="r")["values"][0, 0] == -1
"""

ARROW = """
import fsspec, pyarrow, pyarrow.csv, pyarrow.dataset, pyarrow.parquet
if __name__ == "__main__":
    table = pyarrow.table({"n": list(range(1000)), "g": [f"g{n % 3}" for n in range(1000)]})
    fs = fsspec.filesystem("atoll")
    pyarrow.parquet.write_table(table, "/data/programs/arrow.parquet", filesystem=fs)
    assert pyarrow.parquet.read_table("fsspec+atoll://programs/arrow.parquet").equals(table)
    assert pyarrow.parquet.read_table("/data/programs/arrow.parquet", filesystem=fs, columns=["n"]).num_columns == 1
    with fs.open("atoll://programs/arrow.parquet") as file:
        assert pyarrow.parquet.ParquetFile(file).metadata.num_rows == 1000
    parts = "/data/programs/arrow-parts"
    pyarrow.dataset.write_dataset(table, parts, format="parquet", partitioning=["g"], filesystem=fs)
    found = pyarrow.dataset.dataset(parts, partitioning=["g"], filesystem=fs)
    assert found.to_table(filter=pyarrow.dataset.field("g") == "g1").num_rows == 333
    assert pyarrow.dataset.dataset("fsspec+atoll://programs/arrow-parts", partitioning=["g"]).count_rows() == 1000
    import os
    os._exit(0)  # at the interpreter's own end PyArrow's threads may still hold file systems of Python, and abort
"""

POLARS = """
import fsspec, polars, pyarrow.dataset
if __name__ == "__main__":
    frame = polars.DataFrame({"n": range(1000), "g": [f"g{n % 3}" for n in range(1000)]})
    fs = fsspec.filesystem("atoll")
    with fs.open("atoll://programs/polars.parquet", "wb") as file:
        frame.write_parquet(file)
    with fs.open("atoll://programs/polars.parquet") as file:
        assert polars.read_parquet(file).equals(frame)
    assert polars.read_parquet("atoll://programs/polars.parquet", use_pyarrow=True).equals(frame)
    with fs.open("atoll://programs/polars.csv", "wb") as file:
        frame.write_csv(file)
    with fs.open("atoll://programs/polars.csv") as file:
        assert polars.read_csv(file).height == 1000
    parts = pyarrow.dataset.dataset("/data/programs/polars.parquet", filesystem=fs)
    lazy = polars.scan_pyarrow_dataset(parts).filter(polars.col("g") == "g1").select(polars.len())
    assert lazy.collect().item() == 333
"""

DUCKDB = """
import duckdb, fsspec
connection = duckdb.connect()
connection.register_filesystem(fsspec.filesystem("atoll"))
connection.sql("copy (select n, n % 3 as g from range(1000) t(n)) to 'atoll://programs/duck.parquet' (format parquet)")
rows = connection.sql("select g, count(*) from 'atoll://programs/duck.parquet' group by g order by g").fetchall()
assert rows == [(0, 334), (1, 333), (2, 333)]
connection.sql("copy (select 1 as x) to 'atoll://programs/duck.csv'")
assert connection.sql("select x from read_csv('atoll://programs/duck*.csv')").fetchall() == [(1,)]
"""

DATASETS = """
import datasets
made = datasets.Dataset.from_dict({"text": [f"line {n}" for n in range(1000)], "label": [n % 2 for n in range(1000)]})
both = datasets.DatasetDict(train=made, test=made.select(range(10)))
both.save_to_disk("atoll://programs/datasets", num_shards={"train": 3, "test": 1})
read = datasets.load_from_disk("atoll://programs/datasets")
assert read["train"].num_rows == 1000 and read["test"][9]["text"] == "line 9"
made.to_parquet("atoll://programs/datasets.parquet")
assert datasets.Dataset.from_parquet("atoll://programs/datasets.parquet")[999]["label"] == 1
"""


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(PANDAS, id="pandas"),
        *(
            pytest.param(program, id=name, marks=pytest.mark.once)
            for name, program in [
                ("dask", DASK),
                ("zarr", ZARR),
                ("arrow", ARROW),
                ("polars", POLARS),
                ("duckdb", DUCKDB),
                ("datasets", DATASETS),
            ]
        ),
    ],
)
def test_programs_write_and_read(shared_home: Home, tmp_path: Path, program: str) -> None:
    """Programs that know fsspec only write to the volume and read from it."""
    (tmp_path / "program.py").write_text(program)
    more = {"HF_HOME": str(tmp_path / "hf"), "PYTHONWARNINGS": "default"}
    shared_home.python(str(tmp_path / "program.py"), cwd=tmp_path, env=more)
    with Volume() as volume:
        assert volume.isdir("programs")


@pytest.mark.once
def test_functions_put_files_in_transactions(shared_home: Home) -> None:
    """Inside a function what is put comes from anywhere in its file system, goes there too, and waits for the end of a
    transaction."""

    def work() -> list[Any]:
        import fsspec

        found = fsspec.filesystem("atoll")
        with open("/tmp/local", "w") as file:
            file.write("local")
        found.pipe_file("put/old", b"old")
        try:
            with found.transaction:
                found.put("/tmp/local", "put/old")
                found.put_file("/tmp/local", "put/lost", mode="create")
                raise KeyError
        except KeyError:
            kept = [found.cat_file("put/old"), found.exists("put/lost")]
        with found.transaction:
            found.put("/tmp/local", "put/new")
            kept.append(found.exists("put/new"))
        found.get("put/new", "/tmp/got")
        with open("/tmp/got") as file:
            return [*kept, sorted(found.ls("put", detail=False)), file.read()]

    found = isolated(requirements=["fsspec"])(work)()
    assert found == [b"old", False, False, ["/data/put/new", "/data/put/old"], "local"]


def test_functions_see_the_same_files(shared_home: Home) -> None:
    """Inside a function `atoll://` is registered and works on `/data`, and `Volume` goes to the same files."""

    def work() -> list[Any]:
        import fsspec

        from atoll import Volume

        found = fsspec.filesystem("atoll")
        with fsspec.open("atoll://inside/f", "w") as file:
            file.write("from a function")
        with open("/data/inside/g", "w") as plain:
            plain.write("plain")
        with Volume() as volume:
            volume.write_text("inside/h", "nested")
            names = volume.listdir("inside")
        with open("/data/inside/h") as plain:
            text = plain.read()
        return [found.ls("atoll://inside", detail=False), names, text, type(found).__name__]

    names = ["f", "g", "h"]
    paths = [f"/data/inside/{name}" for name in names]
    found = isolated(requirements=["fsspec"])(work)()
    assert [sorted(found[0]), *found[1:]] == [paths, names, "nested", "DirectoryFileSystem"]
    import fsspec

    assert fsspec.filesystem("atoll").ls("inside", detail=False) == paths
    assert fsspec.filesystem("atoll").cat_file("/data/inside/f") == b"from a function"


@pytest.mark.once
def test_files_survive_the_daemon(atoll_home: Home) -> None:
    """A volume goes on after its daemon was stopped: the next request starts one."""
    with Volume() as volume:
        volume.write_text("f", "x")
        atoll_home.stop()
        assert volume.read_text("f") == "x"


@pytest.mark.once
def test_forked_and_spawned_processes(shared_home: Home, tmp_path: Path) -> None:
    """Processes of a pool, forked or spawned, each have connections of their own."""
    program = tmp_path / "program.py"
    program.write_text(
        """
import multiprocessing, sys
from atoll import Volume
volume = Volume()
def work(number):
    with volume.open(f"pool/{number}", "wb") as file:
        file.write(bytes([number]) * 100_000)
    return volume.read_bytes(f"pool/{number}") == bytes([number]) * 100_000
if __name__ == "__main__":
    volume.write_text("pool/first", "x")
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(3) as pool:
            assert all(pool.map(work, range(12)))
    assert volume.read_text("pool/first") == "x"
"""
    )
    shared_home.python(str(program), cwd=tmp_path)


@pytest.mark.root
def test_a_full_disk(atoll_home: Home) -> None:
    """A write that does not fit is `DiskFull`, leaves what was there, and nothing in staging."""
    import subprocess

    volumes = atoll_home.path / "volumes"
    volumes.mkdir(mode=0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=755", "none", str(volumes)], check=True)
    try:
        with Volume() as volume:
            volume.write_bytes("f", b"old")
            with pytest.raises(DiskFull):
                volume.write_bytes("f", bytes(20 << 20))
            with pytest.raises(DiskFull), volume.open("f", "wb") as file:  # noqa: PT012 - any of them may be the one
                for _ in range(20):
                    file.write(bytes(1 << 20))
            assert volume.read_bytes("f") == b"old"
            volume.write_bytes("half", bytes(5 << 20))
            with pytest.raises(DiskFull):
                volume.copy("half", "other")
            assert volume.listdir() == ["f", "half"]
        (staging,) = volumes.glob("*/staging")
        assert [name for name in os.listdir(staging) if name.startswith(("file", "tree"))] == []
        atoll_home.stop()
    finally:
        subprocess.run(["umount", "-l", str(volumes)], check=True)
