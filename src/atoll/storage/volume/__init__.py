"""One volume's directories on disk: paths, locks, staging. Linux only."""
