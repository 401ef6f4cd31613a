"""The child process in which llama.cpp runs, so that its crash is not ours.

Run as a script by `llamaserver.py`; it imports nothing of Stillhouse. In: one line of JSON settings
on standard input, then nothing until the parent goes away, which closes the pipe and ends this
process, also when the parent is killed. Out: one line of JSON on standard output, the server's
address or what went wrong. llama.cpp's own log goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import time
from typing import Any


def _follow(parent: int) -> None:
    """End with the parent even where another process has inherited the pipe's other end."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


def _parameters(llama: Any, settings: dict[str, Any]) -> Any:
    parameters = llama.CommonParams()
    parameters.model.path = settings["model"]
    parameters.model_alias = {settings["name"]}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0  # the system chooses a free one
    parameters.api_keys = [settings["key"]]
    parameters.n_parallel = settings["slots"]
    # One pool of context shared by all slots: a long request may use what short ones leave.
    parameters.kv_unified = True
    parameters.n_ctx = settings["pool_tokens"]
    parameters.cache_ram_mib = 0  # prompts are seldom asked again once their slot has moved on
    parameters.fit_params = False  # the sizes above are meant
    parameters.warmup = False
    parameters.ui = False
    parameters.offline = True
    parameters.verbosity = 1  # errors only
    if settings["threads"]:
        parameters.cpuparams.n_threads = settings["threads"]
    # Each request carries every one of these; set here too, so that nothing is llama.cpp's choice.
    sampling = parameters.sampling
    sampling.temp, sampling.top_k, sampling.top_p, sampling.min_p = 1.0, 0, 1.0, 0.0
    sampling.penalty_repeat, sampling.penalty_freq, sampling.penalty_present = 1.0, 0.0, 0.0
    return parameters


def main() -> None:
    """Serve until standard input closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends us
    parent = os.getppid()
    settings = json.loads(sys.stdin.readline())
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    try:
        llama = importlib.import_module("xllamacpp")
        server = llama.Server(_parameters(llama, settings))
        told = {"address": server.listening_address}
    except ImportError as problem:
        told = {"missing": str(problem)}
    except (RuntimeError, ValueError, OSError) as problem:
        told = {"error": str(problem)}
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()
    if "address" in told:
        sys.stdin.read()  # until the parent goes
    os._exit(0 if "address" in told else 1)  # llama.cpp's threads are not waited for


if __name__ == "__main__":
    main()
