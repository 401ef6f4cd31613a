"""The terms gate: who is recognised, who is refused, and who may authorise."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from stillhouse import terms
from stillhouse.errors import TermsError
from stillhouse.exchange import Terms
from stillhouse.terms import (
    STATUSES,
    check,
    gate,
    gate_exchanges,
    read_authorisation,
    teachers,
)
from tests.exchanges import numbered

DOCS = Path(__file__).parent.parent / "docs" / "terms.md"
AUTHORISATION = {
    "who": "Ada Example",
    "organisation": "Example Ltd",
    "why": "our own model",
    "date": "2026-03-01",
    "teacher": "http://localhost:8000/v1#our-model",
    "scope": "one internal student",
}


def written(path: Path, fields: dict[str, object]) -> Path:
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in fields.items()))
    return path


def gguf(path: Path, fields: dict[str, str], *, after: bytes = b"") -> Path:
    """A GGUF header with text values, a list and a number among them, and no tensors."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    values = [text(key) + struct.pack("<I", 8) + text(value) for key, value in fields.items()]
    values.insert(0, text("general.languages") + struct.pack("<IIQ", 9, 8, 2) + text("en") * 2)
    values.insert(0, text("general.file_type") + struct.pack("<II", 4, 3))
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, len(values)) + b"".join(values) + after)
    return path


# ---- the table ----


def test_the_table_is_whole() -> None:
    table = teachers()
    assert len(table) >= 25
    assert len({entry.id for entry in table}) == len(table)
    assert {entry.status for entry in table} == set(STATUSES)
    for entry in table:
        assert entry.condition.strip()
        assert entry.licence
        assert entry.source
        assert entry.source.startswith("https://")
        assert entry.read
        assert entry.read <= datetime.now(UTC).date()
        assert entry.confidence in ("read", "reported", "recalled")
        assert entry.names or entry.hosts or entry.licences, f"{entry.id} can never match"


def test_no_licence_tag_and_no_host_stands_in_two_entries() -> None:
    for field in ("licences", "hosts"):
        every = [value for entry in teachers() for value in getattr(entry, field)]
        assert len(set(every)) == len(every)


@pytest.mark.parametrize(
    ("spec", "status", "entry"),
    [
        ("smollm2-135m", "allowed", "smollm"),
        ("hf:HuggingFaceTB/SmolLM3-3B", "allowed", "smollm"),
        ("hf:Qwen/Qwen3-8B", "allowed", "qwen-apache"),
        ("hf:Qwen/Qwen2.5-72B-Instruct", "conditional", "qwen-licence"),
        ("hf:Qwen/Qwen2.5-3B-Instruct", "conditional", "qwen-research"),
        ("hf:deepseek-ai/DeepSeek-R1", "allowed", "deepseek-mit"),
        ("hf:deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", "allowed", "deepseek-mit"),
        ("hf:deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "conditional", "llama-3.1-to-3.3"),
        ("hf:meta-llama/Llama-2-7b-chat-hf", "forbidden", "llama-2"),
        ("hf:meta-llama/Meta-Llama-3-8B-Instruct", "forbidden", "llama-3"),
        ("hf:meta-llama/Llama-3.1-8B-Instruct", "conditional", "llama-3.1-to-3.3"),
        ("hf:meta-llama/Llama-3.2-3B", "conditional", "llama-3.1-to-3.3"),
        ("hf:nvidia/Llama-3_3-Nemotron-Super-49B-v1", "conditional", "llama-3.1-to-3.3"),
        ("hf:google/gemma-3-4b-it", "conditional", "gemma"),
        ("hf:google/gemma-4-12b-it", "allowed", "gemma-4"),
        ("hf:openai/gpt-oss-20b", "allowed", "gpt-oss"),
        ("hf:openai-community/gpt2", "allowed", "gpt2"),
        ("hf:xai-org/grok-1", "allowed", "grok-1"),
        ("hf:xai-org/grok-2", "forbidden", "xai-api"),
        ("hf:TinyLlama/TinyLlama-1.1B-Chat-v1.0", "allowed", "tinyllama"),
        ("hf:nobody/some-model", "unknown", "unknown"),
        ("scripted:echo", "allowed", "scripted"),
    ],
)
def test_a_named_model_has_its_entry(spec: str, status: str, entry: str) -> None:
    terms = check(spec)
    assert (terms.status, terms.teacher) == (status, entry)


# ---- endpoints ----


@pytest.mark.parametrize(
    ("url", "status", "entry"),
    [
        ("https://api.openai.com/v1#gpt-4o-mini", "forbidden", "openai-api"),
        ("https://api.openai.com/v1#smollm2-135m", "forbidden", "openai-api"),
        ("http://localhost:4000/v1#gpt-4o", "forbidden", "openai-api"),
        ("http://localhost:4000/v1#o3-mini", "forbidden", "openai-api"),
        ("https://us-central1-aiplatform.googleapis.com/v1#x", "forbidden", "google-gemini-api"),
        ("https://api.anthropic.com/v1#claude-opus", "forbidden", "anthropic-api"),
        ("https://openrouter.ai/api/v1#anthropic/claude-opus", "forbidden", "anthropic-api"),
        ("https://openrouter.ai/api/v1#qwen/qwen3-8b", "unknown", "hosts-of-open-weights"),
        ("https://api.deepseek.com/v1#deepseek-chat", "allowed", "deepseek-api"),
        ("http://localhost:11434/v1#llama3:8b", "forbidden", "llama-3"),
        ("http://localhost:11434/v1#llama3.2:3b", "conditional", "llama-3.1-to-3.3"),
        ("http://127.0.0.1:8000/v1#smollm2-135m", "allowed", "smollm"),
        ("http://[::1]:8000/v1#smollm2-135m", "allowed", "smollm"),
        ("http://10.1.2.3:8000/v1#openai/gpt-oss-120b", "allowed", "gpt-oss"),
        ("http://gpu-node:8000/v1#phi-4", "allowed", "phi"),
        ("http://127.0.0.1:8000/v1#our-model", "unknown", "unknown"),
        ("http://127.0.0.1:8000/v1", "unknown", "unknown"),
        ("https://api.somewhere.example/v1#smollm2-135m", "unknown", "unknown"),
        ("https://api.openai.com.somewhere.example/v1#phi-4", "unknown", "unknown"),
        ("http://8.8.8.8/v1#phi-4", "unknown", "unknown"),
        ("http://[::1/v1#smollm2-135m", "unknown", "unknown"),
    ],
)
def test_an_endpoint_is_judged_by_host_and_name_the_stricter_wins(
    url: str, status: str, entry: str
) -> None:
    terms = check(url)
    assert (terms.status, terms.teacher) == (status, entry)


def test_every_condition_that_applies_is_said() -> None:
    both = check("https://openrouter.ai/api/v1#meta-llama/llama-3.1-8b").conditions or ""
    assert "host" in both
    assert "Llama" in both


# ---- local files and runs ----


def test_a_gguf_file_is_judged_by_its_header(tmp_path: Path) -> None:
    llama = gguf(tmp_path / "smollm2.gguf", {"general.name": "Meta Llama 3.1 8B Instruct"})
    assert check(f"gguf:{llama}").teacher == "llama-3.1-to-3.3"
    own_word = gguf(tmp_path / "own.gguf", {"general.license": "apache-2.0"})
    assert check(f"gguf:{own_word}").teacher == "permissive-licence"
    derived = gguf(
        tmp_path / "derived.gguf",
        {
            "general.name": "My Tune",
            "general.license": "mit",
            "general.base_model.0.repo_url": "https://huggingface.co/meta-llama/Meta-Llama-3-8B",
        },
    )
    assert check(f"gguf:{derived}").status == "forbidden"
    silent = gguf(tmp_path / "silent.gguf", {"general.architecture": "llama"})
    assert check(f"gguf:{silent}").status == "unknown"


def test_a_gguf_header_is_read_up_to_the_tokenizer(tmp_path: Path) -> None:
    fields = {"general.name": "smollm2", "tokenizer.ggml.model": "x", "general.license": "gemma"}
    assert check(f"gguf:{gguf(tmp_path / 'a.gguf', fields)}").teacher == "smollm"


@pytest.mark.parametrize("cut", [3, 20, 40, 70])
def test_a_broken_header_says_nothing_rather_than_failing(tmp_path: Path, cut: int) -> None:
    whole = gguf(tmp_path / "whole.gguf", {"general.name": "smollm2"}).read_bytes()
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(whole[:cut])
    assert check(f"gguf:{broken}").status == "unknown"
    broken.write_bytes(struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 1 << 60))
    assert check(f"gguf:{broken}").status == "unknown"


def test_known_weights_are_known_by_their_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"weights without a header"
    digest = hashlib.sha256(content).hexdigest()
    entry = terms.Teacher(id="phi", status="allowed", condition="", files={digest: len(content)})
    monkeypatch.setattr(terms, "teachers", lambda: (entry,))
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    assert check(f"gguf:{path}").teacher == "phi"
    path.write_bytes(content[::-1])  # the size of known weights, another content
    assert check(f"gguf:{path}").status == "unknown"


def test_a_folder_is_judged_by_config_and_card(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_name_or_path": "Qwen/Qwen2.5-0.5B"}))
    assert check(f"hf:{tmp_path}").teacher == "qwen-apache"
    card = "---\nlicense: mit\nbase_model:\n- meta-llama/Llama-3.2-1B\n---\n# card\n"
    (tmp_path / "README.md").write_text(card)
    assert check(f"hf:{tmp_path}").teacher == "llama-3.1-to-3.3"
    (tmp_path / "config.json").write_text("not json")
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    assert check(f"hf:{tmp_path}").teacher == "non-commercial-licence"
    (tmp_path / "README.md").write_text("no card")
    assert check(f"hf:{tmp_path}").status == "unknown"


def test_a_run_takes_over_the_terms_of_its_teacher(tmp_path: Path) -> None:
    for name, file, content in (
        ("a", "run.yaml", "name: a\nteacher: hf:meta-llama/Meta-Llama-3-8B\n"),
        ("b", "run.yaml", "name: b\nteacher: run:a\n"),
        ("c", "report.json", '{"teacher": {"spec": "smollm2-135m"}}'),
        ("d", "run.yaml", "name: d\nteacher: run:e\n"),
        ("e", "run.yaml", "name: e\nteacher: run:d\n"),
        ("f", "other.txt", ""),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(content)
    found = {name: check(f"run:{name}", runs=tmp_path).status for name in "abcdefg"}
    assert found == {
        "a": "forbidden", "b": "forbidden", "c": "allowed",
        "d": "unknown", "e": "unknown", "f": "unknown", "g": "unknown",
    }  # fmt: skip


# ---- the gate ----


def test_allowed_and_conditional_teachers_pass_with_their_terms() -> None:
    assert gate("smollm2-135m").status == "allowed"
    conditional = gate("hf:meta-llama/Llama-3.2-3B")
    assert "Built with Llama" in (conditional.conditions or "")
    assert conditional.authorised_by is None


@pytest.mark.parametrize("teacher", ["https://api.openai.com/v1#gpt-4o", "hf:nobody/some-model"])
def test_forbidden_and_unknown_teachers_are_refused(teacher: str) -> None:
    with pytest.raises(TermsError, match=re.escape(teacher)) as refused:
        gate(teacher)
    assert refused.value.exit_code == 5
    assert "authorisation" in str(refused.value)


def test_an_authorisation_opens_the_gate_and_travels(tmp_path: Path) -> None:
    file = written(tmp_path / "a.yaml", AUTHORISATION)
    terms = gate(AUTHORISATION["teacher"], authorisation=file)
    assert terms.status == "unknown"
    for part in ("Ada Example", "Example Ltd", "our own model", "2026-03-01", "internal student"):
        assert part in (terms.authorised_by or "")


def test_an_authorisation_may_name_the_entry(tmp_path: Path) -> None:
    file = written(tmp_path / "a.yaml", {**AUTHORISATION, "teacher": "openai-api"})
    assert gate("https://api.openai.com/v1#gpt-4o", authorisation=file).authorised_by


@pytest.mark.parametrize("status", ["forbidden", "unknown"])
def test_answers_are_held_against_the_terms_recorded_with_them(tmp_path: Path, status: str) -> None:
    ours = check("smollm2-135m")
    bad = Terms(teacher="openai-api", status=status, conditions="no competing model")
    given = [replace(numbered(0), terms=None), replace(numbered(1), terms=ours)]
    gate_exchanges(given, ours)
    gate_exchanges([replace(numbered(2), terms=replace(bad, authorised_by="Ada"))], ours)
    with pytest.raises(TermsError, match=f"{status}: no competing model"):
        gate_exchanges([*given, replace(numbered(2), terms=bad)], ours)
    file = written(tmp_path / "a.yaml", {**AUTHORISATION, "teacher": "openai-api"})
    theirs = gate("https://api.openai.com/v1#gpt-4o", authorisation=file)
    gate_exchanges([replace(numbered(2), terms=bad)], theirs)
    ours = gate(AUTHORISATION["teacher"], authorisation=written(tmp_path / "b.yaml", AUTHORISATION))
    with pytest.raises(TermsError):  # all that is unknown has one entry
        gate_exchanges([replace(numbered(2), terms=replace(bad, teacher="unknown"))], ours)
    with pytest.raises(TermsError):  # an authorisation for one teacher is none for another
        gate_exchanges([replace(numbered(2), terms=replace(bad, teacher="anthropic-api"))], theirs)


@pytest.mark.parametrize("teacher", ["http://localhost:8000/v1#another", "smollm2-135m"])
def test_an_authorisation_for_another_teacher_is_refused(tmp_path: Path, teacher: str) -> None:
    file = written(tmp_path / "a.yaml", AUTHORISATION)
    with pytest.raises(TermsError, match="our-model"):
        gate(teacher, authorisation=file)


def test_an_authorisation_for_anything_unknown_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "a.yaml", {**AUTHORISATION, "teacher": "unknown"})
    with pytest.raises(TermsError):
        gate("hf:nobody/some-model", authorisation=file)


@pytest.mark.parametrize("field", list(AUTHORISATION))
@pytest.mark.parametrize("value", [None, "", "  ", "...", "TODO", "<who>"])
def test_an_empty_field_of_an_authorisation_is_refused(
    tmp_path: Path, field: str, value: str | None
) -> None:
    file = written(tmp_path / "a.yaml", {**AUTHORISATION, field: value})
    with pytest.raises(TermsError, match=f"no '{field}'"):
        read_authorisation(file)
    missing = {key: text for key, text in AUTHORISATION.items() if key != field}
    with pytest.raises(TermsError, match=f"no '{field}'"):
        read_authorisation(written(tmp_path / "b.yaml", missing))


def test_an_unknown_field_of_an_authorisation_is_refused_with_the_nearest(tmp_path: Path) -> None:
    file = written(tmp_path / "a.yaml", {**AUTHORISATION, "organization": "x"})
    with pytest.raises(TermsError, match="Did you mean 'organisation'"):
        read_authorisation(file)


@pytest.mark.parametrize("day", ["soon", "2026-02-30", "2999-01-01"])
def test_an_authorisation_needs_a_day_that_has_come(tmp_path: Path, day: str) -> None:
    with pytest.raises(TermsError, match="date"):
        read_authorisation(written(tmp_path / "a.yaml", {**AUTHORISATION, "date": day}))


@pytest.mark.parametrize("content", ["- a list", "who: [", "", b"\xff\xfe\x00"])
def test_a_file_that_is_no_authorisation_is_refused(tmp_path: Path, content: str | bytes) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TermsError):
        read_authorisation(file)
    with pytest.raises(TermsError):
        read_authorisation(tmp_path / "missing.yaml")


def test_the_documented_example_is_a_valid_authorisation(tmp_path: Path) -> None:
    example = re.search(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert example
    file = tmp_path / "a.yaml"
    file.write_text(example.group(1))
    authorisation = read_authorisation(file)
    assert gate(authorisation.teacher, authorisation=file).authorised_by


def test_the_gate_needs_no_heavy_import() -> None:
    code = (
        "import sys; from stillhouse.terms import check; check('smollm2-135m'); "
        "print({'torch', 'pyarrow', 'openai', 'transformers', 'gguf'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
