"""Frames, and channels that carry them. Standard library only: the agent uses it inside the sandbox."""
