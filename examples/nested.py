"""A function that calls another one, with another environment, from inside its sandbox."""

from atoll import isolated


@isolated(requirements=["pyjokes==0.8.3"])
def tell_joke(number):
    import pyjokes

    return pyjokes.get_jokes()[number]


@isolated(requirements=["cowsay==6.1"])
def show(number):
    import cowsay

    return cowsay.get_output_string("cow", tell_joke(number))


if __name__ == "__main__":
    print(show(0))
