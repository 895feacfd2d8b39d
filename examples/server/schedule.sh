#!/bin/sh
# Schedule the function of jokes.py, look at its runs and at what they printed, and cancel it.
#
# It needs a server: `atoll server --demo` prints the variables. WHEN is the cron expression, in UTC: here each second, so
# that there is something to see; "0 7 * * *" is each day at seven.
set -eu
cd "$(dirname "$0")"

cron=$(atoll function schedule "${WHEN:-* * * * * *}" jokes.py joke_of_the_day)
atoll crons list

# Wait for the first run that is over.
activation=
while [ -z "$activation" ]; do
    sleep 1
    activation=$(atoll crons activations "$cron" --limit=1000 | awk '/ ok /{print $1; exit}')
done

atoll crons activations "$cron" 3
atoll crons logs "$cron" "$activation"
atoll crons cancel "$cron"
