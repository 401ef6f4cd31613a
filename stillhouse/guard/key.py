"""The secret of a scan, and the hashes that are keyed with it.

In: a key file that only its owner reads; names and texts. Out: 64-bit keyed BLAKE2b hashes, by
which equal values are linked while nobody without the key can tell, or try out, what they were.
Whoever holds the key can try out guesses: keep it apart from the events, and delete it with them.
"""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

from stillhouse.errors import DataError
from stillhouse.files import read_secret, write_secret

__all__ = ["NOTHING", "FieldHash", "derived", "fingerprint", "read_key", "write_key"]

KEY_BYTES = 32
NOTHING = bytes(8)
"""Hash of what is not recorded: 0."""
_REMEMBERED, _LONGEST_REMEMBERED = 65_536, 256
_MAKE = (
    "Name the key of the calibration or scan; where there is none yet, leave --key out: one is made"
)


def write_key(path: Path) -> bytes:
    """A fresh key, written to a new file that only its owner can read.

    Raises:
        DataError: the file exists, or the disk refuses.
    """
    key = secrets.token_bytes(KEY_BYTES)
    write_secret(path, key.hex().encode() + b"\n")
    return key


def read_key(path: Path) -> bytes:
    """The key in a file.

    Raises:
        DataError: there is none, it is no key, or others than the owner may read it.
    """
    text = read_secret(path, "a key file", _MAKE)
    try:
        key = bytes.fromhex(text.decode("ascii").strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise DataError(str(path), "no key", f"{2 * KEY_BYTES} hexadecimal digits", _MAKE)
    return key


def fingerprint(key: bytes) -> str:
    """What may be written beside events to tell which key they are hashed with."""
    return hashlib.blake2b(b"stillhouse guard", digest_size=16, key=key).hexdigest()


def derived(key: bytes, purpose: str) -> bytes:
    """32 secret bytes for one purpose."""
    return hashlib.blake2b(purpose.encode(), digest_size=32, key=key, person=b"derive").digest()


class FieldHash:
    """Keyed hash of one field's values; equal values of two fields have different hashes."""

    def __init__(self, key: bytes, field: str) -> None:
        """Field names have at most 16 bytes."""
        self._begun = hashlib.blake2b(digest_size=8, key=key, person=field.encode())
        self._known: dict[str, bytes] = {}

    def of(self, data: bytes) -> bytes:
        """Eight bytes; of nothing, zeros."""
        if not data:
            return NOTHING
        state = self._begun.copy()
        state.update(data)
        return state.digest()

    def name(self, text: str | None) -> bytes:
        """Hash of a name that comes again and again."""
        if not text:
            return NOTHING
        if len(text) > _LONGEST_REMEMBERED:
            return self.of(text.encode("utf-8", "surrogatepass"))
        found = self._known.get(text)
        if found is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            found = self._known[text] = self.of(text.encode("utf-8", "surrogatepass"))
        return found
