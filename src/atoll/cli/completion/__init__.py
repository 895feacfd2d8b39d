"""Completion in bash, zsh and fish: scripts from the command table."""
