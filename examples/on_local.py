"""The same function with other options, on a host that is named, and as the plain function that it also is."""

import os

from atoll import isolated, local


@isolated()
def greet():
    return f"{os.environ.get('GREETING', 'hello')} from {os.environ.get('HOME')}"


if __name__ == "__main__":
    print("on the default host:", greet())
    print("on local, with a variable:", greet.on(local, env={"GREETING": "good morning"})())
    print("in this process:", greet.local().replace(os.path.expanduser("~"), "my own home"))
