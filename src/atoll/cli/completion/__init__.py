"""Completion in bash, zsh and fish: scripts from the command table, and the values that only the machine knows."""
