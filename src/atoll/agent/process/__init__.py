"""The process that a worker is: its state between calls, what calls leave running in it, and its end."""
