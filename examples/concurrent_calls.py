"""Several calls at the same time: `submit` gives futures, as those of `concurrent.futures`."""

from concurrent.futures import as_completed

from atoll import isolated


@isolated()
def count_primes(low, high):
    return sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(max(low, 2), high))


if __name__ == "__main__":
    futures = {count_primes.submit(low, low + 10_000): low for low in range(0, 40_000, 10_000)}
    found = {futures[future]: future.result() for future in as_completed(futures)}
    for low in sorted(found):
        print(f"{low:6d} to {low + 10_000:6d}: {found[low]} primes")
    print("total:", sum(found.values()))
