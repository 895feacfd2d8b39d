"""A function that reads a secret: a variable whose value is in no program.

`secrets.sh` sets it before, and deletes it afterwards.
"""

from atoll import isolated


@isolated()
def my_isolated_function():
    import os

    my_secret_value = os.environ.get("SECRET_NAME")
    return "no secret" if my_secret_value is None else f"a secret of {len(my_secret_value)} characters"


if __name__ == "__main__":
    print(my_isolated_function())
