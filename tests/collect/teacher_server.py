"""A real OpenAI-compatible server on loopback that counts what it is asked.

It answers every prompt with the same words for the same prompt and seed, and does what a prompt's
first word says: 'flaky' fails twice before it answers, 'down' always fails, 'long' is refused as
longer than the context, 'slow' takes its time.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class TeacherServer(ThreadingHTTPServer):
    """Counts prompts as they are asked and as they are answered."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, delay: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.delay = delay
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.counting = threading.Lock()

    @property
    def spec(self) -> str:
        """The model spec it is reached by; its name is one the terms allow."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1#smollm2-135m"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: TeacherServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._send(200, {"object": "list", "data": [{"id": "smollm2-135m", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        with self.server.counting:
            self.server.asked[prompt] += 1
            self.server.bodies.append(body)
            times = self.server.asked[prompt]
        time.sleep(self.server.delay + (0.3 if prompt.startswith("slow") else 0))
        if prompt.startswith("long"):
            message = "the request exceeds the available context size"
            error = {"message": message, "type": "invalid_request_error", "code": None}
            self._send(400, {"error": {**error, "code": "context_length_exceeded"}})
        elif prompt.startswith("down") or (prompt.startswith("flaky") and times < 3):
            self._send(500, {"error": {"message": "out of order", "type": "server_error"}})
        else:
            self._send(200, self._answer(body, prompt))

    def _answer(self, body: dict[str, Any], prompt: str) -> dict[str, Any]:
        words = f"{prompt} heard with seed {body.get('seed')}"
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": words},
            "finish_reason": "stop",
        }
        usage = {"prompt_tokens": 5, "completion_tokens": 10, "total_tokens": 15}
        return {
            "id": "1", "object": "chat.completion", "created": 1, "model": "smollm2-135m",
            "choices": [choice], "usage": usage,
        }  # fmt: skip

    def _send(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            self.close_connection = True


@contextmanager
def teacher_server(delay: float = 0.0) -> Iterator[TeacherServer]:
    """The server, answering until the context is left."""
    server = TeacherServer(delay)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
