"""`@cached`: what is costly is computed once in each worker, for each combination of arguments.

Of the calls with 4, 3, 4, 3, 5 the second 4 and the second 3 compute nothing.
"""

from atoll import cached, isolated


@cached
def load_model(size):
    print(f"computing for {size}")
    return {"weights": list(range(size))}


@isolated(keep_alive=60)
def predict(size):
    return sum(load_model(size)["weights"])


if __name__ == "__main__":
    for size in (4, 3, 4, 3, 5):
        print(f"predict({size}) = {predict(size)}")
