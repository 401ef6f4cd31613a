"""Files are whole or not there; lines cut short are no lines; secrets are their owner's alone."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from stillhouse.errors import DataError
from stillhouse.files import (
    append_lines,
    file_hash,
    model_hash,
    read_secret,
    whole_lines,
    write_secret,
    write_whole,
)


def refusing(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_file_is_replaced_whole_or_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    assert write_whole(path, "eins\ud800") == path
    assert path.read_bytes() == b"eins\\ud800"
    monkeypatch.setattr(os, "fsync", refusing)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"two")
    assert path.read_bytes() == b"eins\\ud800"


def test_what_is_written_aside_may_lie_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    write_whole(tmp_path / "inner" / "file", b"x", tmp_path)
    assert [p.name for p in (tmp_path / "inner").iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []), (b"1\n2\n", [b"1", b"2"]), (b"1\n\n[2", [b"1", b""]), (b"[1, 2", []),
        (b"1\n[2]", [b"1", b"[2]"]), (b"[1]\n{\"a\": \"\xc3", [b"[1]"]),
    ],
)  # fmt: skip
def test_a_torn_last_line_is_no_line_and_is_never_written_onto(
    tmp_path: Path, content: bytes, lines: list[bytes]
) -> None:
    path = tmp_path / "lines"
    assert whole_lines(path) == []
    path.write_bytes(content)
    assert whole_lines(path) == lines
    assert path.read_bytes() == content  # reading changes nothing
    append_lines(path, ["[3]", "[4]"])
    assert path.read_bytes() == b"".join(line + b"\n" for line in [*lines, b"[3]", b"[4]"])


def test_a_secret_is_its_owners_and_is_never_written_over(tmp_path: Path) -> None:
    path, umask = tmp_path / "key", os.umask(0)
    try:
        write_secret(path, b"secret")
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_secret(path, "a key", "Make one") == b"secret"
    with pytest.raises(DataError, match="a file of that name"):
        write_secret(path, b"other")
    assert path.read_bytes() == b"secret"
    with pytest.raises(DataError, match="cannot be written"):
        write_secret(tmp_path / "none" / "key", b"secret")
    with pytest.raises(DataError, match="No such file"):
        read_secret(tmp_path / "none", "a key", "Make one")


def test_a_secret_that_the_disk_refuses_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", refusing)
    with pytest.raises(DataError, match="No space"):
        write_secret(tmp_path / "key", b"secret")
    assert not (tmp_path / "key").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_secret_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    write_secret(path, b"secret")
    path.chmod(mode)
    with pytest.raises(DataError, match="others than its owner"):
        read_secret(path, "a key", "Make one")


def test_file_hash_is_the_sha256_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")  # NIST's example value for "abc"
    assert file_hash(tmp_path / "f") == (
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_a_model_is_its_weights_and_settings_whatever_lies_beside_them(tmp_path: Path) -> None:
    """The very value that bundles of 0.1.0 hold: they stay comparable."""
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("a card")
    (tmp_path / "logs.json").mkdir()
    parts = [f"{file_hash(tmp_path / n)} {n}\n" for n in ("config.json", "model.safetensors")]
    assert model_hash(tmp_path) == "w1:" + hashlib.sha256("".join(parts).encode()).hexdigest()
    weights = tmp_path / "model.safetensors"
    assert model_hash(weights) == file_hash(weights)
