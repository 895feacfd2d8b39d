"""`sync_dir` and downloads with the client of 2023."""

import os

from fal_serverless import isolated, sync_dir


def ok(name: str, holds: object) -> None:
    print(f"{'ok' if holds else 'WRONG'} {name}", flush=True)


@isolated(keep_alive=60)
def contents(directory):
    found = {}
    for base, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(base, name)
            with open(path) as file:
                found[os.path.relpath(path, directory)] = file.read()
    found.pop(".fal_hash", None)
    return found


def main() -> None:
    os.makedirs("local/inner")
    for name, text in (("a.txt", "one"), ("inner/b.txt", "two")):
        with open(f"local/{name}", "w") as file:
            file.write(text)
    returned = sync_dir("local", "/data/sync/d")
    ok("sync_dir", contents(returned) == {"a.txt": "one", "inner/b.txt": "two"} == contents("/data/sync/d"))
    sync_dir("local", "/data/sync/d")
    os.unlink("local/a.txt")
    with open("local/c.txt", "w") as file:
        file.write("three")
    sync_dir("local", "/data/sync/d")
    ok("sync_dir again", contents(returned) == {"c.txt": "three", "inner/b.txt": "two"})


main()
