"""The teacher's weights for tests marked `weights`, and one llama.cpp server that they share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from stillhouse.exchange import Request, Sampling, message
from stillhouse.models import weights
from stillhouse.models.llamacpp import LlamaCppModel


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Tiny networks are slower on two threads, and far slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def gguf() -> Path:
    return weights.pull("smollm2-135m")


@pytest.fixture(scope="session")
def llama(gguf: Path) -> Iterator[LlamaCppModel]:
    # One thread: where tests run side by side, llama.cpp's threads would wait for one another.
    with LlamaCppModel(gguf, spec="smollm2-135m", slots=4, context_tokens=256, threads=1) as model:
        yield model


def ask(text: str, **sampling: object) -> Request:
    """A request of one user message; every setting neutral but those given."""
    settings = {"temperature": 1.0, "max_tokens": 24, "seed": 1, "sample_index": 0, **sampling}
    return Request(prompt=(message("user", text),), sampling=Sampling(**settings))  # type: ignore[arg-type]
