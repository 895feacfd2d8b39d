"""Requests that wait on the server: submitted, looked at, cancelled, and fetched when they are over."""

import json
import os
import time
import urllib.error
import urllib.request

from atoll import isolated

KEY = f"{os.environ['ATOLL_KEY_ID']}:{os.environ['ATOLL_KEY_SECRET']}" if "ATOLL_KEY_ID" in os.environ else ""


@isolated(requirements=["flask"], exposed_port=8080, keep_alive=60, max_concurrency=1)
def app():
    import time

    from flask import Flask, jsonify, request

    app = Flask("words")

    @app.route("/count", methods=["POST"])
    def count():
        asked = request.get_json()
        print("counting the words of", len(asked["text"]), "characters")
        time.sleep(asked.get("seconds", 0))
        return jsonify({"words": len(asked["text"].split())})

    app.run(host="0.0.0.0", port=8080)


def ask(method, url, value=None):
    """Make a request; return the JSON of its answer."""
    headers = {"Authorization": f"Basic {KEY}", "Content-Type": "application/json"}
    body = None if value is None else json.dumps(value).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method)) as answer:
        return json.load(answer)


def wait(queue, request_id):
    """Wait until a request is over; return its answer."""
    while ask("GET", f"{queue}/requests/{request_id}/status")["status"] != "COMPLETED":
        time.sleep(0.2)
    return ask("GET", f"{queue}/requests/{request_id}/response")


if __name__ == "__main__":
    queue = app.serve("words").url + "/fal/queue"  # the part of the path that makes a request wait

    first = ask("POST", f"{queue}/submit/count", {"text": "many islands share one lagoon", "seconds": 1})
    second = ask("POST", f"{queue}/submit/count", {"text": "an atoll"})  # waits: there is one worker at most

    status = ask("GET", f"{queue}/{second['request_id']}/get")
    print("the second request:", status["status"], "behind", status["queue_position"], "others")
    print("cancelled:", ask("PUT", f"{queue}/{second['request_id']}/cancel")["status"])

    print("the first request:", wait(queue, first["request_id"]))
    try:
        wait(queue, second["request_id"])
    except urllib.error.HTTPError as error:
        print("the second request:", error.code, json.load(error)["error_type"])
