"""Queue: requests to endpoints that the server keeps until a runner has answered them, and their answers."""
