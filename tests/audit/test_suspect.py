"""Which model a bundle says it was: by name, address and hash, never by what lets somebody in."""

from __future__ import annotations

import json
import random
import shutil
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import stillhouse
import stillhouse.audit.identity_audit as identity
from stillhouse.audit.claims import battery
from stillhouse.audit.identity_audit import identity_audit
from stillhouse.audit.page import write_page
from stillhouse.audit.settings import IdentitySettings, TwinSettings, WatermarkSettings
from stillhouse.audit.suspect import address_of, failure_of
from stillhouse.audit.twin_audit import twin_audit
from stillhouse.audit.watermark_audit import Vocabulary, watermark_audit
from stillhouse.errors import ModelError
from stillhouse.evaluate.kept import weights_hash
from stillhouse.exchange import message
from stillhouse.messages import Prompt
from stillhouse.models import open_model
from stillhouse.models.local import LocalModel
from stillhouse.models.scripted import TOKENIZER, encode
from stillhouse.watermark import Watermark
from tests.models.chat_server import ChatServer

CONTENT = {**battery(), "questions": {"en": battery()["questions"]["en"]}}


class Talker(ChatServer):
    """A server that says something else each time, and refuses two of the first requests."""

    def __init__(self) -> None:
        super().__init__()
        self.faults = [400, 400]

    @property
    def answer(self) -> dict[str, Any]:
        draw = random.Random(len(self.asked))
        return {"content": "".join(draw.choices(string.ascii_lowercase + " ", k=60))}

    @answer.setter
    def answer(self, value: dict[str, Any]) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Talker]:
    running = Talker()
    yield running
    running.close()


def twin(spec: str, escrowed: Path, out: Path) -> None:
    settings = TwinSettings(samples_per_prompt=1)
    twin_audit(
        settings, suspects=[spec], exchanges=escrowed / "served", twins=escrowed / "escrow", out=out
    )


def watermark(spec: str, escrowed: Path, out: Path) -> None:
    asked = [f"tell me {n}" for n in range(70)] + ["far too long " * 600]
    prompts = [
        Prompt(id=f"p{n}", messages=(message("user", text),), labels={}, source="here")
        for n, text in enumerate(asked)
    ]
    with open_model(spec) as suspect:
        vocabulary = (
            Vocabulary.of(suspect.text) if isinstance(suspect, LocalModel)
            else Vocabulary(TOKENIZER, encode, lambda m, _: encode("".join(x.text for x in m)))
        )  # fmt: skip
        watermark_audit(
            WatermarkSettings(max_tokens=40), suspect=suspect, vocabulary=vocabulary,
            watermark=Watermark(key=bytes(range(32))), prompts=prompts, out=out,
        )  # fmt: skip


def who(spec: str, escrowed: Path, out: Path) -> None:
    settings = IdentitySettings(candidate="anthropic", max_tokens=8)
    identity_audit(settings, suspect=spec, controls=["scripted:echo"], out=out)


@pytest.mark.parametrize("reached", ["hf", "endpoint"])
@pytest.mark.parametrize("audit", [twin, watermark, who])
def test_a_bundle_names_the_suspect_and_shows_neither_path_nor_password(
    audit: Any, reached: str, escrowed: Path, llama: Path, server: Talker, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(identity, "battery", lambda: CONTENT)
    folder, out = shutil.copytree(llama, tmp_path / "Mash-7"), tmp_path / "out"
    url = server.url.replace("http://", "http://user:password@")
    audit(f"hf:{folder}" if reached == "hf" else f"{url}#m", escrowed, out)
    for file in sorted((out / "sealed").iterdir()):
        text = file.read_text("utf-8")
        assert str(tmp_path) not in text, file.name
        assert "password" not in text, file.name
    plan = json.loads((out / "sealed" / "plan.json").read_text())
    assert plan["suspect"] == ("Mash-7" if reached == "hf" else "m")
    lines = [json.loads(x) for x in (out / "sealed" / "models.jsonl").read_text().splitlines()]
    (line,) = [line for line in lines if line["role"] == "suspect"]
    assert line["weights"] == (weights_hash(folder) if reached == "hf" else None)
    assert line["endpoint"] == (None if reached == "hf" else server.url)
    checked = stillhouse.audit_verify(out)
    assert checked.ok, checked.differences


@pytest.mark.parametrize("audit", [watermark, who])
def test_a_bundle_of_before_without_hashes_is_verified_and_shown(
    audit: Any, escrowed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What 0.1.0 did not write: the models of a watermark audit, and the hash of an identity's."""
    monkeypatch.setattr(identity, "battery", lambda: CONTENT)

    def before(model: Any, role: str) -> dict[str, Any]:
        return {"role": role, "model": model.name, "reached": "scripted", "endpoint": None}

    monkeypatch.setattr(identity, "model_line", before)
    monkeypatch.setattr("stillhouse.audit.watermark_audit.note_model", lambda *_: None)
    audit("scripted:bigram", escrowed, tmp_path / "out")
    (tmp_path / "out" / "report.html").unlink()
    checked = stillhouse.audit_verify(tmp_path / "out")
    assert checked.ok, checked.differences
    write_page(tmp_path / "out", dict(checked.evidence or {}))
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize(
    ("spec", "found", "told"),
    [
        ("hf:/home/ada/Mash-7", "/home/ada/Mash-7/a.json is gone", "Mash-7/a.json is gone"),
        ("gguf:/home/ada/m.gguf", "no file /home/ada/m.gguf", "no file m"),
        ("hf:model", f"{Path.cwd()}/model is gone", "model is gone"),
        (
            "http://user:password@host/v1?key=abc#m",
            "not user:password, key=abc",
            "not m, m",
        ),
        ("scripted:echo", "nothing", "nothing"),
        ("/home/ada/own", "/home/ada/own is gone", "own is gone"),  # a model made in Python
    ],
)
def test_a_failure_is_told_without_the_spec(spec: str, found: str, told: str) -> None:
    error = ModelError(f"model '{spec}'", found, "an answer", "Ask again")
    assert failure_of(error, spec) == told


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://user:pass@word@Host:80/v1?key=abc", "http://Host:80/v1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("https://host/v1#m", "https://host/v1"),
    ],
)
def test_an_address_lets_nobody_in(url: str, told: str) -> None:
    assert address_of(url) == told
