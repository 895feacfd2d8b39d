"""`/data` from outside of functions: files are put there, read by a function, and read by programs that know fsspec."""

import fsspec

from atoll import Volume, isolated


@isolated()
def count_words(path):
    with open(path) as f:
        return len(f.read().split())


if __name__ == "__main__":
    volume = Volume()
    volume.makedirs("/data/notes", exist_ok=True)
    volume.write_text("/data/notes/island.txt", "many islands share one lagoon")
    volume.copy("/data/notes/island.txt", "/data/notes/copy.txt")
    print("in /data/notes:", ", ".join(volume.listdir("/data/notes")))
    print("words, counted by a function:", count_words("/data/notes/island.txt"))

    with fsspec.open("atoll://notes/island.txt", "r") as f:
        print("through fsspec:", f.read())
