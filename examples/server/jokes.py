"""A function for the clock: the joke of the day, printed, and sent to the hook of a chat where there is one.

`schedule.sh` schedules it. The secret HOOK_URL has the hook's address.
"""

from atoll import isolated


@isolated(requirements=["pyjokes", "httpx"])
def joke_of_the_day():
    import os

    import httpx
    import pyjokes

    message = f"The joke of the day:\n> {pyjokes.get_joke()}"
    print(message)
    if "HOOK_URL" in os.environ:
        httpx.post(os.environ["HOOK_URL"], json={"text": message}).raise_for_status()
