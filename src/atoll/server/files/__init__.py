"""`/data` over HTTP: files of a user's volume for browsers and curl, below `/v1/files/`.

Theory of operation. The server never opens a user's path. A storage peer does, a process of the user in a sandbox that
has the volume and nothing else; it follows no symlink out of it (`storage.volume.locate`). The server speaks the
peer's protocol in the user's name, and passes contents on in pieces of 1 MiB, as fast as the slower side takes them.
A few peers wait for the next request of their user (`peers`).
"""

from atoll.server.files.routes import install

__all__ = ["install"]
