"""`make quickstart`: the three cases that Atoll is for, each a program of this directory.

It can be run again: what the first run left in `/data` is there, so that the second run restores the network at once.
"""

import os
import subprocess
import sys
import time

PROGRAMS = (
    ("preferences.py", "Preferences: written by one call, read by the next"),
    (
        "neural_network.py",
        """A neural network: trained at the first call, restored from /data at the second
    (the first run installs TensorFlow into the function's environment: about 600 MB to download)""",
    ),
    ("upload.py", "A directory: uploaded with sync_dir, listed inside a function"),
)

if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    for program, heading in PROGRAMS:
        print(f"\n=== {heading}\n    python examples/{program}\n", flush=True)
        began = time.monotonic()
        status = subprocess.call([sys.executable, "-u", os.path.join(here, program)])
        if status != 0:
            print(f"\nexamples/{program} failed with status {status}; `.venv/bin/atoll doctor` may know why")
            sys.exit(status)
        print(f"\n    ({time.monotonic() - began:.1f} s)", flush=True)
    print(
        "\nEverything that the functions kept is in /data. Next: docs/tutorial/first-program.md, and the other programs here."
    )
