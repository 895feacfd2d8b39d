"""The answer of a queued request, told to an address of your own, with a signature that it can check.

The receiver is on this machine. A server tells public addresses alone, unless its `settings.toml` allows others:

    [webhooks]
    allowed_networks = ["127.0.0.0/8"]

The check needs the package `cryptography`.
"""

import base64
import hashlib
import http.server
import json
import os
import threading
import time
import urllib.parse
import urllib.request

import queued
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SERVER = os.environ.get("ATOLL_HOST", "")


def check(headers, body):
    """Check that a delivery is the server's, and new.

    Raises:
        InvalidSignature, ValueError: it is not.
    """
    lines = [headers[f"x-fal-webhook-{name}"] for name in ("request-id", "user-id", "timestamp")]
    if abs(time.time() - int(lines[2])) > 300:
        raise ValueError("the delivery is old")
    with urllib.request.urlopen(f"{SERVER}/.well-known/jwks.json") as answer:
        (key,) = json.load(answer)["keys"]
    public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"] + "="))
    text = "\n".join([*lines, hashlib.sha256(body).hexdigest()])
    public.verify(bytes.fromhex(headers["x-fal-webhook-signature"]), text.encode())


class Receiver(http.server.BaseHTTPRequestHandler):
    """Takes deliveries."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        check(self.headers, body)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
        told = json.loads(body)
        print("told:", told["status"], told["payload"])
        self.server.told.set()

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        server.told = threading.Event()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hook = urllib.parse.quote(f"http://127.0.0.1:{server.server_port}/hook", safe="")
        submit = f"{queued.app.serve('words').url}/fal/queue/submit/count?fal_webhook={hook}"
        queued.ask("POST", submit, {"text": "many islands share one lagoon"})
        server.told.wait()
        server.shutdown()
