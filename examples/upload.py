"""A directory of this machine, uploaded with `sync_dir` and listed inside a function."""

import os
import tempfile

from atoll import isolated, sync_dir


@isolated()
def test():
    import os

    os.system("ls /data/sync/remote_dir")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as local_dir:
        for name in ("customers.csv", "orders.csv", "readme.txt"):
            with open(os.path.join(local_dir, name), "w") as f:
                f.write(f"the contents of {name}\n")
        print("uploaded to", sync_dir(local_dir, "remote_dir"))
    test()  # prints the contents of the uploaded directory
