"""`mlflow server` as a test needs it: real, killed hard, started again; and one that hangs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from dpgan.registry.store import server_is_up


class Server:
    """`mlflow server` on a free loopback port, started and killed like a real one."""

    def __init__(self, folder: Path, database: str = "server.db") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{port}"
        store = ["--backend-store-uri", f"sqlite:///{folder}/{database}", "--artifacts-destination", str(folder)]
        where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        self.command = [sys.executable, "-m", "mlflow", "server", *store, *where]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        # A session of its own: the server forks workers, and all of them must end.
        silent = subprocess.DEVNULL
        self.process = subprocess.Popen(self.command, stdout=silent, stderr=silent, start_new_session=True)
        deadline = time.monotonic() + 90
        while not server_is_up(self.uri):
            assert self.process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server did not start within 90 s"
            time.sleep(0.2)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextmanager
def hanging_server(*answers: str) -> Iterator[tuple[str, list[str]]]:
    """A server that answers {} to the paths of `answers` and never to others; its URI, and the paths it was asked."""
    asked: list[str] = []
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if not self.path.startswith(answers):
                over.wait()
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        do_POST = do_PATCH = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        over.set()
        server.shutdown()
        server.server_close()
