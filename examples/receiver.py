"""Prints every completion that is POSTed to it: the smallest callback endpoint there can be.

    python3 -m examples.receiver 9000

Nothing but the standard library; a real one is `clients.CompletionReceiver`.
"""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["PrintCompletion", "main"]


class PrintCompletion(BaseHTTPRequestHandler):
    """Answers 200 and prints headers and body."""

    def do_POST(self) -> None:
        """Take one completion."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        print(f"POST {self.path}")
        for name, value in self.headers.items():
            print(f"{name}: {value}")
        print(f"\n{body.decode('utf-8', 'replace')}\n", flush=True)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing else."""


def main() -> None:
    """Serve on 127.0.0.1, port 9000 or the one given."""
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 9000
    with ThreadingHTTPServer(("127.0.0.1", port), PrintCompletion) as server:
        print(f"waiting for completions on http://127.0.0.1:{port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
