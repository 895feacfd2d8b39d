"""The programs `preferences.py`, `neural_network.py` and `upload.py`, with each function `.on(cloud)`.

`cloud` is the server that one is logged in to (`atoll auth login`), or that `ATOLL_HOST` and the key beside it name.
`make quickstart-server` runs this program on a server of its own.
"""

import os
import tempfile
import time

import neural_network
import preferences
import upload

from atoll import cloud, sync_dir


def preferences_on_cloud():
    preferences.generate_recommendations.on(cloud)(7, "hiking, jazz, black tea")
    print("another call reads:", preferences.read_preferences.on(cloud)(7))


def network_on_cloud():
    for call in ("first", "second"):
        how, seconds, accuracy = neural_network.train_and_predict.on(cloud)(0)
        print(f"{call} call: {how} in {seconds:.2f} s, accuracy {accuracy:.2f}")


def upload_to_cloud():
    with tempfile.TemporaryDirectory() as local_dir:
        for name in ("customers.csv", "orders.csv", "readme.txt"):
            with open(os.path.join(local_dir, name), "w") as f:
                f.write(f"the contents of {name}\n")
        print("uploaded to", sync_dir(local_dir, "remote_dir", host=cloud))
    upload.test.on(cloud)()  # prints the contents of the uploaded directory


if __name__ == "__main__":
    for case in (preferences_on_cloud, network_on_cloud, upload_to_cloud):
        began = time.monotonic()
        case()
        print(f"    ({time.monotonic() - began:.1f} s)\n", flush=True)
