"""Volumes and how directories get there: scan, plan (pure), transfer, apply.

A volume is `ATOLL_HOME/volumes/USER/`, one file system, mode 0700, owned by whoever its functions run as:

    data/       what functions see at `/data`
    staging/    what a transfer is preparing, and trees that were replaced; never visible to functions

Only a storage peer (`storage.peer`) opens a volume. It runs as the volume's owner in a sandbox that has the volume
and nothing else, and serves one client over a channel. The client's half (`volume`, `sync`, `transfer`, `index`)
and what both share (`tree`, `scan`, `plan`) import on every platform.
"""
