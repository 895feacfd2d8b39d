"""Functions to be served and scheduled with the command line of 2023."""

from fal_serverless import isolated


@isolated(serve=True, requirements=["pyjokes==0.6.0"], keep_alive=60)
def greet(name: str, times: int = 1):
    return f"hello {name}" * times


@isolated(exposed_port=8080, keep_alive=60)
def server():
    import http.server
    import os

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = f"{self.path} {os.environ.get('FROM_SECRET', '')}".encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    print("serves", flush=True)
    http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever()


@isolated()
def tick():
    print("ticks")
