"""Ask the model of language_model.py with OpenAI's Python package: `pip install openai`.

The key of the server is the API key, and the endpoint's address with `/v1` the base URL.
"""

import os
import sys

from openai import OpenAI


def client():
    """Return the client of the endpoint."""
    key = f"{os.environ['ATOLL_KEY_ID']}:{os.environ['ATOLL_KEY_SECRET']}"
    return OpenAI(base_url=f"{sys.argv[1]}/v1", api_key=key)


if __name__ == "__main__":
    model = client().models.list().data[0].id
    print("model:", model)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    pieces = []
    for event in client().chat.completions.create(model=model, messages=messages, max_tokens=40, stream=True):
        if event.choices and event.choices[0].delta.content:
            pieces.append(event.choices[0].delta.content)
            print(pieces[-1], end="", flush=True)
    print()
    print("pieces:", len(pieces))
