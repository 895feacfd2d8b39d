"""Apps: functions of a file, deployed at a server, and called from any program."""
