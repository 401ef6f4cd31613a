"""A chat server on loopback for tests: answers, and the faults of real servers, as scripted."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class _Quiet(ThreadingHTTPServer):
    """Connections that are cut on purpose are no news."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class ChatServer:
    """Serves /v1/models and /v1/chat/completions; `faults` are played before it answers."""

    def __init__(self, owned_by: str | None = None) -> None:
        self.owned_by = owned_by
        self.faults: list[Any] = []  # status, (status, headers), seconds to be silent, bytes, "cut"
        self.answer: dict[str, Any] = {}  # over the message of the answer
        self.choice: dict[str, Any] = {}  # over the choice
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.times: list[float] = []
        self.open = self.most_open = 0
        self.lock = threading.Lock()
        self.seconds = 0.0
        outer = self

        class Answer(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if outer.owned_by is None:
                    outer.send(self, 404, b"{}")
                else:
                    model = {"id": "m", "object": "model", "owned_by": outer.owned_by}
                    outer.send(self, 200, json.dumps({"data": [model]}).encode())

            def do_POST(self) -> None:
                with outer.lock:
                    outer.open += 1
                    outer.most_open = max(outer.most_open, outer.open)
                try:
                    outer.reply(self)
                finally:
                    with outer.lock:
                        outer.open -= 1

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = _Quiet(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def reply(self, ask: Any) -> None:
        body = json.loads(ask.rfile.read(int(ask.headers["Content-Length"])))
        with self.lock:
            self.asked.append(body)
            self.keys.append(ask.headers.get("Authorization"))
            self.times.append(time.monotonic())
            fault = self.faults.pop(0) if self.faults else None
        time.sleep(self.seconds)
        if isinstance(fault, float):
            time.sleep(fault)
        elif fault == "cut":
            ask.close_connection = True
            ask.connection.close()
            return
        elif isinstance(fault, bytes):
            self.send(ask, 200, fault)
            return
        elif fault is not None:
            status, headers = fault if isinstance(fault, tuple) else (fault, {})
            self.send(ask, status, b'{"error": {"message": "as scripted"}}', headers)
            return
        said = {"role": "assistant", "content": f"to {body['messages'][-1]['content']}"}
        choice = {"index": 0, "finish_reason": "stop", "message": said | self.answer} | self.choice
        usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
        whole = {"id": "c", "object": "chat.completion", "created": 1, "model": "m-2026-11",
                 "choices": [choice], "usage": usage}  # fmt: skip
        self.send(ask, 200, json.dumps(whole).encode())

    def send(
        self, ask: Any, status: int, body: bytes, headers: dict[str, str] | None = None
    ) -> None:
        try:
            ask.send_response(status)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                ask.send_header(name, value)
            ask.send_header("Content-Length", str(len(body)))
            ask.end_headers()
            ask.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # whoever asked has given up
