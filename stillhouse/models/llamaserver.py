"""A llama.cpp server on loopback, in a child process that is started again when it dies.

In: a GGUF file, slots, context. Out: an address, a key, and answers to JSON requests. A request
that was open when the server died is asked again on the next one; after `RESTARTS` deaths without
a single answer in between, the server counts as gone. What answers mean is `llamacpp.py`'s part.
"""

from __future__ import annotations

import asyncio
import io
import json
import secrets
import subprocess
import sys
import tempfile
from collections import deque
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import stillhouse.models.llamachild as llamachild
from stillhouse.errors import ModelError, TransportError

if TYPE_CHECKING:
    import httpx

__all__ = ["ATTEMPTS", "RESTARTS", "LlamaServer", "Refused"]

RESTARTS = 3
"""Deaths in a row, without an answer in between, after which the server counts as gone."""
ATTEMPTS = 8
"""How often one request is asked before it counts as what kills the server."""
_LOG_LINES = 4  # of llama.cpp's log, in an error


class Refused(Exception):
    """The server answered that it will not: HTTP status and its words."""

    def __init__(self, status: int, message: str, details: dict[str, Any]) -> None:
        super().__init__(message)
        self.status, self.message, self.details = status, message, details


class LlamaServer:
    """One server process at a time; `call` survives its death.

    Raises ModelError when the file cannot be served, TransportError when the server is gone.
    """

    def __init__(
        self, gguf: Path, *, slots: int, pool_tokens: int, threads: int | None,
        timeout_seconds: float,
    ) -> None:  # fmt: skip
        self.gguf, self.restarts = gguf, 0
        self.address, self.key = "", ""
        """Of the server that runs now, for other clients on this machine."""
        self._settings = {
            "model": str(gguf), "name": gguf.name, "slots": slots, "pool_tokens": pool_tokens,
            "threads": threads,
        }  # fmt: skip
        self._timeout = timeout_seconds
        self._process: subprocess.Popen[str] | None = None
        self._log: IO[bytes] = io.BytesIO()
        self._words = ""  # the end of the last server's log
        self._client: httpx.AsyncClient | None = None
        self._generation = 0  # counts servers started
        self._deaths_in_a_row = 0
        self._changing = asyncio.Lock()
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Process id of the running server."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def gone(self) -> bool:
        """Whether it was given up, after too many deaths in a row."""
        return self._closed or self._deaths_in_a_row > RESTARTS

    # ---- asking -------------------------------------------------------------------------------

    async def call(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON answer to a request (POST with a body, else GET), asked again after a death.

        Raises:
            Refused: the server answered with an error of the request's making.
            TransportError: the request outlived `ATTEMPTS` servers, or the server is gone.
        """
        import httpx

        found = "nothing"
        for _ in range(ATTEMPTS):
            generation, client = await self._running()
            try:
                response = await client.request(
                    "GET" if body is None else "POST", path,
                    content=None if body is None else json.dumps(body).encode(),
                )  # fmt: skip
                if response.status_code >= 400:
                    raise _refusal(response.status_code, response.content)
                answer = json.loads(response.content)
            except (httpx.TransportError, RuntimeError, ValueError) as problem:
                # RuntimeError: the client was closed under us, because another request saw the
                # death first. A read timeout means that the server hangs: it is ended too.
                found = repr(problem)
                async with self._changing:
                    await self._retire(generation)
                continue
            self._deaths_in_a_row = 0
            return answer
        raise TransportError(
            str(self.gguf), f"llama.cpp's server died {ATTEMPTS} times on one request ({found})",
            "an answer", "Leave this prompt out, or report it with the model's name",
        )  # fmt: skip

    async def _running(self) -> tuple[int, httpx.AsyncClient]:
        """The number of the running server and a client of it; a dead one is replaced."""
        async with self._changing:
            if self._process is not None and self._process.poll() is not None:
                await self._retire(self._generation)
            if self._client is None:
                if self._generation:
                    self._deaths_in_a_row += 1
                if self.gone:
                    raise TransportError(
                        str(self.gguf),
                        f"llama.cpp's server died {self._deaths_in_a_row} times in a row without "
                        f"an answer{self._words}",
                        "a server that answers",
                        "Check the memory left and the GGUF file, then run the command again: "
                        "answers already stored are kept",
                    )
                self.restarts += bool(self._generation)
                self.address, self.key = await asyncio.to_thread(self._spawn)
                self._client = self._connect(self.address, self.key)
                self._generation += 1
            return self._generation, self._client

    async def start(self) -> None:
        """Start the server where it is not running."""
        await self._running()

    def _connect(self, address: str, key: str) -> httpx.AsyncClient:
        import httpx

        return httpx.AsyncClient(
            base_url=address,
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
            timeout=httpx.Timeout(self._timeout, connect=10),
            limits=httpx.Limits(max_connections=None),
            trust_env=False,  # a proxy has no business on loopback
        )

    # ---- the process --------------------------------------------------------------------------

    def _spawn(self) -> tuple[str, str]:
        """Address and key of a new server process; blocks until it has loaded the model."""
        key = secrets.token_urlsafe(24)  # other users of this machine stay out
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `_reap`
        process = subprocess.Popen(
            [sys.executable, "-P", str(llamachild.__file__)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
        )  # fmt: skip
        self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({**self._settings, "key": key}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        told = json.loads(line) if line.endswith("\n") else {}
        if "address" in told:
            return told["address"], key
        process.kill()
        self._reap(process)
        self._process = None
        if "missing" in told:
            raise ModelError(
                str(self.gguf), f"xllamacpp cannot be imported ({told['missing']})",
                "the package xllamacpp", "Install it: pip install xllamacpp",
            )  # fmt: skip
        found = told.get("error") or f"exit code {process.returncode}"
        raise ModelError(
            str(self.gguf), f"llama.cpp could not serve the file: {found}{self._words}",
            "a GGUF model that llama.cpp knows, and memory for it",
            "Check the file, or ask for fewer slots or a shorter context",
        )  # fmt: skip

    async def _retire(self, generation: int) -> None:
        """End the given server; nothing where another one runs by now."""
        if generation != self._generation or self._process is None:
            return
        process, self._process = self._process, None
        client, self._client = self._client, None
        process.kill()  # it holds nothing worth a farewell
        await asyncio.to_thread(self._reap, process)
        if client is not None:
            await client.aclose()

    def kill(self) -> None:
        """End the server at once and for good, whatever it is doing; callable from any thread."""
        self._closed = True
        if self._process is not None:
            self._process.kill()

    async def close(self) -> None:
        """End the server for good and release what it held."""
        self.kill()
        async with self._changing:
            await self._retire(self._generation)

    def _reap(self, process: subprocess.Popen[str]) -> None:
        """Wait for a killed process, close its files, and keep the end of its log for errors."""
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        with self._log:
            self._log.seek(0)
            lines = deque((line.decode(errors="replace").strip() for line in self._log), _LOG_LINES)
        self._words = "".join(f"; {line}" for line in lines if line)


def _refusal(status: int, content: bytes) -> Refused:
    try:
        details = json.loads(content)["error"]
        return Refused(status, str(details["message"]), details)
    except (ValueError, KeyError, TypeError):
        return Refused(status, content.decode(errors="replace")[:300], {})
