"""`/data` on many machines: real mounts of JuiceFS, and daemons that share it."""
