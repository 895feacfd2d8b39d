#!/bin/sh
# Make a key that calls endpoints and runs functions, use it in place of the first one, list the keys and revoke it.
#
# Keys of the scope ADMIN also make keys, set secrets and register functions.
set -eu
cd "$(dirname "$0")"

address=$(atoll function serve shout.py shout --alias shout | sed -n 's/^URL: //p')
(
    eval "$(atoll key generate --scope API --alias a-colleague)" # prints the two variables, this once
    curl -sS --fail-with-body -X POST "$address" -H "Authorization: Key $ATOLL_KEY_ID:$ATOLL_KEY_SECRET" \
        -H "Content-Type: application/json" -d '{"text": "with a key of my own"}'
    echo
    atoll key generate --scope ADMIN || echo "a key of the scope API makes no keys"
)
atoll key list
key=$(atoll key list | awk '/a-colleague/{print $1}')
atoll key revoke "$key"
