"""Calls of an endpoint with fal-client: at once, and by the queue."""

import sys

import fal_client


def ok(name: str, holds: object) -> None:
    print(f"{'ok' if holds else 'WRONG'} {name}", flush=True)


def main() -> None:
    app = sys.argv[1]
    ok("run", fal_client.run(app, arguments={"name": "ann"}) == {"text": "hello ann"})
    ok("subscribe", fal_client.subscribe(app, arguments={"name": "bob"}) == {"text": "hello bob"})


main()
