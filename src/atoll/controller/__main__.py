"""The program of the process."""

from atoll.controller.main import main

main()
