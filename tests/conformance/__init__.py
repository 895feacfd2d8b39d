"""What every host must do, in one suite.

Written from the reference, not from the code. A test takes the fixture `place` and asks it for functions; nothing here
knows how the host runs them, but for the fixture in `conftest`. A new kind of host is a new parameter there.
"""
