"""A file of the network that is downloaded to `/data` once, checked, and used by every function from then on."""

import hashlib
import pathlib
import tempfile

from atoll import download, isolated
from atoll.errors import ChecksumMismatch


@isolated()
def first_line(path):
    with open(path) as f:
        return f.readline().strip()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        # Any `https://` address will do; this one needs no network.
        file = pathlib.Path(directory, "labels.txt")
        file.write_text("heron\nrail\ntern\n")
        digest = hashlib.sha256(file.read_bytes()).hexdigest()

        path = download(file.as_uri(), sha256=digest, path="/data/labels.txt")
        print("downloaded to", path)
        print("its first line, read by a function:", first_line(path))

        download(file.as_uri(), sha256=digest, path="/data/labels.txt")  # there already: nothing is downloaded

        try:
            download(file.as_uri(), sha256="0" * 64, path="/data/labels.txt")
        except ChecksumMismatch:
            print("another digest is refused, and the file stays:", first_line(path))
