"""The key file is its owner's alone; hashes are keyed, by field."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillhouse.errors import DataError
from stillhouse.guard.key import NOTHING, FieldHash, fingerprint, read_key, write_key


def test_a_key_is_written_for_its_owner_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "key"
    key = write_key(path)
    assert len(key) == 32
    assert read_key(path) == key
    assert write_key(tmp_path / "other") != key
    path.chmod(0o640)
    with pytest.raises(DataError, match="others than its owner"):
        read_key(path)


@pytest.mark.parametrize("content", [b"", b"00" * 31, b"zz" * 32, b"\xff" * 64])
def test_what_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(DataError, match="no key"):
        read_key(path)


def test_hashes_are_keyed_and_differ_by_field() -> None:
    one = FieldHash(b"a" * 32, "head")
    assert one.of(b"x") == one.name("x") == one.name("x") != NOTHING
    assert one.of(b"") == one.name("") == one.name(None) == NOTHING
    assert one.of(b"x") != FieldHash(b"a" * 32, "tail").of(b"x")
    assert one.of(b"x") != FieldHash(b"b" * 32, "head").of(b"x")
    assert fingerprint(b"a" * 32) != fingerprint(b"b" * 32)


def test_names_remembered_stay_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillhouse.guard.key._REMEMBERED", 10)
    one = FieldHash(b"a" * 32, "head")
    assert [one.name(str(i)) for i in range(25)] == [one.of(str(i).encode()) for i in range(25)]
    assert len(one._known) <= 10
    assert one.name("x" * 1000) == one.of(b"x" * 1000)
    assert "x" * 1000 not in one._known
