"""A directory of `/data` before an experiment, what the experiment changed, and the way back."""

from atoll import Volume, isolated


@isolated()
def train(weights):
    import os

    os.makedirs("/data/model", exist_ok=True)
    with open("/data/model/weights.txt", "w") as f:
        f.write(weights)


@isolated()
def compare():
    with open("/data/.snapshots/good-model/weights.txt") as then, open("/data/model/weights.txt") as now:
        return then.read(), now.read()


if __name__ == "__main__":
    volume = Volume()
    train("good weights")
    volume.snapshot("good-model", "/data/model")

    train("weights that turned out to be worse")
    for difference in volume.diff("good-model"):
        print(difference.change, difference.path)
    print("then and now, as a function sees them:", *compare(), sep="\n  ")

    replaced = volume.restore("good-model", wait=True)
    print("restored:", volume.read_text("/data/model/weights.txt"))

    volume.remove_snapshot("good-model")
    volume.remove_snapshot(replaced)  # what the restore has replaced
