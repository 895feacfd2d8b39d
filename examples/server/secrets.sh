#!/bin/sh
# Set a secret, list the names of all, use it in a function, and delete it.
#
# A value is asked for, or read from standard input: other users of a machine can read the arguments of its programs.
set -eu
cd "$(dirname "$0")"

printf 'swordfish\n' | atoll secrets set SECRET_NAME
atoll secrets list
python secret.py
atoll secrets delete SECRET_NAME
python secret.py
