"""Audits through the command line: from an escrow to a verified bundle, and every wrong input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from stillhouse.cli.main import main
from stillhouse.escrow import check_pair, check_published, commitment
from stillhouse.exchange import from_dict
from tests.audit.conftest import ask

TWIN = ["audit", "twin", "--quiet"]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ask(tmp_path_factory.mktemp("cli") / "asked", "scripted:bigram", count=30)


@pytest.fixture(scope="module")
def bundle(asked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "audit"
    assert main([*TWIN, *given(asked), "--suspect", "scripted:bigram", "--out", str(out)]) == 0
    return out


def given(asked: Path) -> list[str]:
    return ["--exchanges", str(asked / "served"), "--twins", str(asked / "escrow")]


def run(capsys: Any, *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(list(arguments))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_bundle_is_verified_and_a_changed_one_is_not(
    bundle: Path, tmp_path: Path, capsys: Any
) -> None:
    code, out, _ = run(capsys, "audit", "verify", str(bundle))
    assert code == 0
    assert "The seal holds" in out
    assert "Every number was recomputed" in out
    assert (bundle / "report.html").exists()
    copy = shutil.copytree(bundle, tmp_path / "copy")
    evidence = copy / "sealed" / "evidence.json"
    evidence.write_bytes(evidence.read_bytes().replace(b'"n":30', b'"n":31'))
    code, out, err = run(capsys, "audit", "verify", str(copy), "--json")
    assert code == 3
    assert json.loads(out)["ok"] is False
    assert "evidence.json" in err


def test_a_root_or_commitment_that_was_published_is_held_against_the_bundle(
    bundle: Path, capsys: Any
) -> None:
    _, out, _ = run(capsys, "audit", "verify", str(bundle), "--json")
    found = json.loads(out)
    published = ["--root", found["root"], "--commitment", found["commitment"]]
    assert run(capsys, "audit", "verify", str(bundle), *published)[0] == 0
    assert run(capsys, "audit", "verify", str(bundle), "--root", "00")[0] == 3


def test_a_redacted_copy_keeps_the_seal_and_says_that_numbers_cannot_be_recomputed(
    bundle: Path, tmp_path: Path, capsys: Any
) -> None:
    copy = str(tmp_path / "copy")
    code, out, _ = run(
        capsys, "audit", "redact", str(bundle), "--out", copy, "--matching", "number 7"
    )
    assert (code, out.startswith("1 lines")) == (0, True)
    code, out, _ = run(capsys, "audit", "verify", copy)
    assert code == 3
    assert "The seal holds" in out
    assert "withheld" in out
    wrong = run(capsys, "audit", "redact", str(bundle), "--out", "x", "--matching", "(")
    assert wrong[0] == 2


def test_a_single_pair_is_revealed_with_its_proof(asked: Path, bundle: Path, capsys: Any) -> None:
    pairs = (bundle / "sealed" / "pairs.jsonl").read_text().splitlines()
    name = json.loads(pairs[0])["exchange"]
    stores = [str(asked / "escrow"), str(asked / "served")]
    code, out, _ = run(capsys, "audit", "reveal", *stores, name, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["published"]["pairs"] == 30
    assert [pair["exchange"] for pair in found["pairs"]] == [name]
    shown, published = found["pairs"][0], found["published"]
    nonce, served = bytes.fromhex(shown["nonce"]), from_dict(shown["served"])
    mark = commitment(nonce, served.id, from_dict(shown["twin"]).id)
    assert check_pair(nonce, served, from_dict(shown["twin"])) is None
    assert check_published(shown, mark, published) is None
    assert check_published(shown, mark, published | {"root": "00" * 32}) is not None
    assert run(capsys, "audit", "reveal", *stores, "x1:nobody")[0] == 2


def test_power_says_how_many_pairs_are_needed(capsys: Any) -> None:
    code, out, _ = run(capsys, "audit", "twin", "--power", "--json")
    rows = {(row["share"], row["level"]): row for row in json.loads(out)["rows"]}
    assert code == 0
    assert 30 < rows[0.9, 1e-6]["signed_rank"] < rows[0.9, 1e-6]["sign_test"] < 60
    assert rows[0.52, 1e-6]["signed_rank"] is None


def test_a_dry_run_asks_nothing(asked: Path, capsys: Any) -> None:
    code, out, _ = run(capsys, *TWIN, *given(asked), "--dry-run", "--json")
    assert (code, json.loads(out)["pairs"]) == (0, 30)


def test_several_suspects_are_one_result(asked: Path, tmp_path: Path, capsys: Any) -> None:
    code, out, _ = run(
        capsys, *TWIN, *given(asked), "--suspect", "scripted:bigram", "--suspect", "scripted:slow",
        "--out", str(tmp_path / "out"), "--json",
    )  # fmt: skip
    assert code == 0
    assert len(json.loads(out)["suspects"]) == 2


def test_a_batch_says_what_it_waits_for_and_what_it_discloses(
    asked: Path, tmp_path: Path, capsys: Any
) -> None:
    code, out, _ = run(
        capsys, *TWIN, *given(asked), "--suspect", f"batch:{tmp_path / 'b'}", "--out",
        str(tmp_path / "out"),
    )  # fmt: skip
    assert code == 0
    assert "learns the prompts and both answers" in out
    assert "run the same command again" in out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["twin"], 2, "no --exchanges, --out, --suspect"),
        (["twin", "--exchanges", "no", "--out", "o", "--suspect", "scripted:bigram"], 2, "twins"),
        (["twin", "--acces", "text"], 2, ""),
        (["watermark"], 2, "no --suspect, --teacher, --key, --out, --prompts"),
        (["watermark", "--mode", "reading"], 2, "--served"),
        (["verify", "nothing-here"], 3, "nothing-here"),
        (["change", "a", "b"], 3, "evidence.json"),
        (["key", "--out", "k", "--teacher", "scripted:bigram"], 2, "tokenizer is not at hand"),
    ],
)
def test_wrong_input_is_named(
    arguments: list[str], code: int, says: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    found, _, err = run(capsys, "audit", *arguments)
    assert found == code
    assert says in err
    assert "Traceback" not in err


def test_a_key_is_made_once_and_its_commitment_printed(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "mark.key"
    code, out, _ = run(capsys, "audit", "key", "--out", str(file), "--width", "1")
    assert code == 0
    assert json.loads(file.read_text())["commitment"] in out
    assert run(capsys, "audit", "key", "--out", str(file))[0] == 3


def test_an_identity_audit_ends_in_a_verified_bundle(tmp_path: Path, capsys: Any) -> None:
    out = str(tmp_path / "identity")
    asked = ["audit", "identity", "--suspect", "scripted:echo", "--control", "scripted:bigram",
             "--candidate", "openai", "--out", out, "--quiet", "--max-tokens", "20"]  # fmt: skip
    code, said, err = run(capsys, *asked)
    assert code == 0, err
    assert "What cannot be concluded" in said
    assert run(capsys, "audit", "verify", out)[0] == 0
    assert (tmp_path / "identity" / "report.html").exists()
