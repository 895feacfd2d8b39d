#!/bin/sh
# Serve the functions of shout.py, call them with curl, and read what they have printed.
#
# It needs a server: `atoll server --demo` prints the three variables that are used here, for another terminal.
set -eu
cd "$(dirname "$0")"

# With an alias, the address has it; without one the revision's id.
atoll function serve shout.py shout --alias shout | tee served.txt
address=$(sed -n 's/^URL: //p' served.txt)

# The arguments are a JSON object.
curl -sS --fail-with-body -X POST "$address" -H "Content-Type: application/json" \
    -H "X-Fal-Key-Id: $ATOLL_KEY_ID" -H "X-Fal-Key-Secret: $ATOLL_KEY_SECRET" -d '{"text": "hello"}'
echo

# An anonymous function is reached by its revision alone; this one has a server of its own, by Flask.
atoll function serve shout.py flask_app | tee served.txt
flask=$(sed -n 's/^URL: //p' served.txt)
curl -sS --fail-with-body "$flask/?text=hello" -H "Authorization: Basic $ATOLL_KEY_ID:$ATOLL_KEY_SECRET"

# What functions printed: the last lines of all endpoints, or of one.
atoll function logs --url "$address" --lines 20
atoll alias list
rm served.txt
