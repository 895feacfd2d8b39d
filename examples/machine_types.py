"""`machine_type` and `.on`: one function, with as much of the machine as each call needs."""

from atoll import isolated


@isolated(machine_type="S")
def memory_limit(megabytes):
    block = bytearray(megabytes << 20)
    return f"{len(block) >> 20} MB fit"


if __name__ == "__main__":
    from atoll import errors

    print("S:", memory_limit(100))
    print("XS:", memory_limit.on(machine_type="XS")(100))
    try:
        memory_limit.on(machine_type="XS")(1000)
    except errors.OutOfMemory as error:
        print("XS:", type(error).__name__, "at", error.limit_bytes >> 20, "MB")
    print("M:", memory_limit.on(machine_type="M")(1000))
