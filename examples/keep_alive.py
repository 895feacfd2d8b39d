"""`keep_alive`: a worker that stays warm keeps what its modules have loaded, so that only the first call pays for it."""

import time
import uuid

from atoll import isolated


@isolated(keep_alive=60)
def classify(text):
    import builtins

    if not hasattr(builtins, "model"):  # what a module holds stays as long as the worker
        time.sleep(0.5)  # stands for loading a large model
        builtins.model = {"good": 1, "bad": -1}
        builtins.worker = uuid.uuid4().hex  # process numbers repeat: each sandbox counts its own
        print("loaded the model")
    return sum(builtins.model.get(word, 0) for word in text.split()), builtins.worker


if __name__ == "__main__":
    first, first_worker = classify("a good day")
    second, second_worker = classify("a bad night")
    print("scores:", first, second)
    print("the same worker:", first_worker == second_worker)
    passing = classify.on(keep_alive=0)  # nothing is kept: the next call has a worker of its own
    print("a worker for each call:", passing("good")[1] != passing("bad")[1])
