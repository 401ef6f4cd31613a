"""Redacted copies: the seal holds, the numbers cannot be recomputed, and both are said."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from stillhouse.audit.bundle import Bundle
from stillhouse.audit.redact import redact
from stillhouse.audit.seal import SEAL
from stillhouse.audit.verify import verify
from stillhouse.errors import ConfigError, DataError
from tests.audit.bundles import (
    FUNCTIONS,
    KEY,
    changed,
    found,
    sealed,
)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return sealed(tmp_path / "audit")


def odd_pairs(name: str, line: Mapping[str, Any]) -> bool:
    return name == "pairs" and int(line["id"][1:]) % 2 == 1


def test_a_redacted_bundle_holds_its_seal_and_not_its_numbers(
    bundle: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "redacted"
    assert redact(bundle.folder, out, odd_pairs) == 3
    result = verify(out, FUNCTIONS, root=bundle.root, commitment=bundle.commitment)
    assert result.differences == ()
    assert (result.ok, result.seal_holds, result.numbers_hold) == (False, True, None)
    assert result.withheld == {"pairs.jsonl": 3}
    assert result.lines_read == 9
    assert "The numbers were not recomputed: 3 lines are withheld." in result.sentences()
    text = (out / "sealed" / "pairs.jsonl").read_text()
    assert '"p2"' in text
    assert '"p3"' not in text
    assert (out / "sealed" / SEAL).read_bytes() == (
        bundle.folder / "sealed" / SEAL
    ).read_bytes()  # fmt: skip
    assert (out / "contest" / "contest.yaml").exists()
    assert found(bundle.folder).ok


def test_lines_fixed_beforehand_and_secrets_are_withheld_too(
    bundle: Bundle, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert redact(bundle.folder, one, lambda name, line: name == "prompts", secrets=True) == 6
    assert redact(one, two, odd_pairs, secrets=True) == 3
    result = verify(two, FUNCTIONS, root=bundle.root, commitment=bundle.commitment)
    assert result.seal_holds, result.differences
    assert result.withheld == {"pairs.jsonl": 3, "prompts.jsonl": 6, "reveal.json": 1}
    assert result.not_recomputed == "9 lines are withheld and the secrets are withheld"
    assert KEY not in "".join(p.read_text() for p in (two / "sealed").iterdir())
    secrets_only = tmp_path / "three"
    assert redact(bundle.folder, secrets_only, lambda *_: False, secrets=True) == 0
    assert found(secrets_only).not_recomputed == "the secrets are withheld"


def test_withholding_nothing_is_a_copy(bundle: Bundle, tmp_path: Path) -> None:
    assert redact(bundle.folder, tmp_path / "copy", lambda *_: False) == 0
    assert found(tmp_path / "copy").ok


@pytest.mark.parametrize("name", ["pairs.jsonl", "reveal.json", SEAL])
def test_every_change_to_a_redacted_bundle_is_found(
    bundle: Bundle, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "redacted"
    redact(bundle.folder, out, odd_pairs, secrets=True)
    draw, data = random.Random(11), (out / "sealed" / name).read_bytes()
    for at in range(len(data)):
        other = bytes([data[at] ^ draw.randrange(1, 256)])
        result = changed(out, name, data[:at] + other + data[at + 1 :])
        assert not result.seal_holds, (at, other)
    for other in (data[:-1], data + b"\n", b"", data[:-1] + b"\r\n", data * 2):
        assert not changed(out, name, other).seal_holds
    assert found(out).seal_holds


def test_redaction_refuses_what_does_not_hold_and_what_is_in_its_way(
    bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(ConfigError, match="holds files already"):
        redact(bundle.folder, tmp_path / "full", odd_pairs)
    with pytest.raises(DataError, match="writing the redacted copy failed"):
        redact(bundle.folder, tmp_path / "full" / "file", odd_pairs)
    with pytest.raises(DataError, match="cannot be read"):
        redact(tmp_path / "none", tmp_path / "out", odd_pairs)
    path = bundle.folder / "sealed" / "pairs.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="a bundle whose seal holds"):
        redact(bundle.folder, tmp_path / "out", odd_pairs)
    assert not (tmp_path / "out").exists()
