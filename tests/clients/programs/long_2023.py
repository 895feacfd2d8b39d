"""A call that takes as many seconds as are asked for, without output after its first line."""

import sys

from fal_serverless import isolated


@isolated()
def waits(seconds):
    import time

    print("has begun", flush=True)
    time.sleep(seconds)
    return seconds


print("result", waits(float(sys.argv[1])), flush=True)
