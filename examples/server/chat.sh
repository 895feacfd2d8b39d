#!/bin/sh
# Ask the model of language_model.py with curl, and see its answer as it is made.
set -eu
cd "$(dirname "$0")"

address=$(atoll function serve language_model.py chat --alias chat --health-path /health | sed -n 's/^URL: //p')
curl -sS --fail-with-body --no-buffer "$address/v1/chat/completions" -H "Content-Type: application/json" \
    -H "Authorization: Bearer $ATOLL_KEY_ID:$ATOLL_KEY_SECRET" \
    -d '{"messages": [{"role": "user", "content": "What is the capital of France?"}], "stream": true, "max_tokens": 40}'
