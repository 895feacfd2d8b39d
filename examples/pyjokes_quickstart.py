"""A function with a requirement: the package is installed in the function's environment, not in yours."""

from atoll import isolated


@isolated(requirements=["pyjokes"])
def tell_joke():
    import pyjokes

    return pyjokes.get_joke()


if __name__ == "__main__":
    print(tell_joke())
