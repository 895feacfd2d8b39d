"""A project directory, kept equal on `/data`: what would be done, what is left out, and only what changed travels."""

import os
import tempfile

from atoll import isolated, sync_dir


@isolated()
def files_in(directory):
    import os

    os.chdir(directory)
    return ", ".join(sorted(os.path.join(at, name)[2:] for at, _, names in os.walk(".") for name in names))


def write(directory, name, text):
    path = os.path.join(directory, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        f.write(text)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as project:
        write(project, "train.py", "print('training')\n")
        write(project, "data/rows.csv", "a,b\n1,2\n")
        write(project, "runs/today.log", "epoch 1\n")
        write(project, ".atollignore", "*.log\n")

        print("what would be done:")
        sync_dir(project, "project", exclude=["__pycache__/"], dry_run=True)
        path = sync_dir(project, "project", exclude=["__pycache__/"])
        print(f"in {path}:", files_in(path))

        os.remove(os.path.join(project, "data", "rows.csv"))
        write(project, "data/more.csv", "a,b\n3,4\n")
        print("what would be done now:")
        sync_dir(project, "project", exclude=["__pycache__/"], dry_run=True)
        sync_dir(project, "project", exclude=["__pycache__/"])
        print(f"in {path}:", files_in(path))
