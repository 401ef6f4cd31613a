"""Verification: any change to the sealed part is named, numbers are recomputed, nothing crashes."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.audit.bundle import Bundle
from stillhouse.audit.seal import REQUIRED, SEAL, Sealed, compare, known_name, seal_of
from stillhouse.audit.verify import verify
from stillhouse.errors import DataError, EvidenceError
from stillhouse.exchange import canonical_json
from tests.audit.bundles import (
    FUNCTIONS,
    KEY,
    PLAN,
    PROMPTS,
    begun,
    changed,
    edit,
    found,
    pairs,
    refused,
    sealed,
    sign_test,
)

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return sealed(tmp_path / "audit")


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed bundle that tests put back as it was."""
    return sealed(tmp_path_factory.mktemp("untouched") / "audit").folder


# ---- changes to the sealed part ----


@pytest.mark.parametrize("name", [*REQUIRED, SEAL])
def test_every_byte_of_the_small_files_counts(untouched: Path, name: str) -> None:
    draw, data = random.Random(5), (untouched / "sealed" / name).read_bytes()
    for at in range(len(data)):
        other = bytes([data[at] ^ draw.randrange(1, 256)])
        result = changed(untouched, name, data[:at] + other + data[at + 1 :])
        assert not result.seal_holds
        assert result.differences
        assert not result.ok
    assert found(untouched).ok


NAMES = [*REQUIRED, SEAL, "prompts.jsonl", "pairs.jsonl"]
EDITS: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda d: b"",
    "cut in half": lambda d: d[: len(d) // 2],
    "without its last line feed": lambda d: d[:-1],
    "with one more line feed": lambda d: d + b"\n",
    "with CRLF": lambda d: d.replace(b"\n", b"\r\n"),
    "with a space at the end": lambda d: d[:-1] + b" \n",
    "with a space inside": lambda d: d.replace(b":", b": ", 1),
    "with a byte order mark": lambda d: b"\xef\xbb\xbf" + d,
    "in UTF-16": lambda d: d.decode().encode("utf-16"),
    "with a byte that is no UTF-8": lambda d: d.replace(b'"', b'"\xff', 1),
    "with a key twice": lambda d: d.replace(b"{", b'{"a":1,"a":1,', 1),
    "with NaN": lambda d: d.replace(b"{", b'{"a":NaN,', 1),
    "with a number out of range": lambda d: d.replace(b"{", b'{"a":1e999,', 1),
    "with a number without end": lambda d: d.replace(b"{", b'{"a":' + b"1" * 5000 + b",", 1),
    "with half a character": lambda d: d.replace(b"{", b'{"a":"\\ud800",', 1),
    "with an escaped letter": lambda d: d.replace(b'"', b'"\\u0061', 1),
    "with depth without end": lambda d: b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"\n",
    "as a list": lambda d: b"[" + d[:-1] + b"]\n",
    "as null": lambda d: b"null\n",
    "as an empty object": lambda d: b"{}\n",
    "as a hash": lambda d: b'"' + hashlib.sha256(d).hexdigest().encode() + b'"\n',
    "twice": lambda d: d + d,
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", EDITS)
def test_other_bytes_are_differences_and_never_crash(untouched: Path, name: str, how: str) -> None:
    before = (untouched / "sealed" / name).read_bytes()
    data = EDITS[how](before)
    assert data != before
    result = changed(untouched, name, data)
    assert not result.ok
    assert result.sentences()
    if name == "reveal.json" and how == "as a hash":  # that is a redaction
        assert result.withheld == {"reveal.json": 1}
        assert result.seal_holds
    else:
        assert any(name in difference for difference in result.differences)
        assert not result.seal_holds
        assert result.numbers_hold is not True or name == "evidence.json"


def test_lines_moved_taken_or_added_are_differences(untouched: Path) -> None:
    data = (untouched / "sealed" / "pairs.jsonl").read_bytes()
    rows = data.splitlines(keepends=True)
    for other in (rows[::-1], rows[1:], rows[:-1], [*rows, rows[0]], [rows[1], rows[0], *rows[2:]]):
        result = changed(untouched, "pairs.jsonl", b"".join(other))
        assert not result.seal_holds
        assert any("'merkle_root'" in d for d in result.differences)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_a_difference(untouched: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(untouched, folder)
    (folder / "sealed" / name).unlink()
    refused(folder, name, "missing")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("to", ["more.jsonl", "PLAN.json", "plan.json.bak", "a b.jsonl", "\x1b[2J"])
def test_a_renamed_or_extra_file_is_a_difference(
    untouched: Path, tmp_path: Path, name: str, to: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(untouched, folder)
    shutil.copy(folder / "sealed" / name, folder / "sealed" / to)
    result = refused(folder, to if known_name(to) else ascii(to))
    assert not result.seal_holds
    (folder / "sealed" / name).unlink()
    result = refused(folder, name)
    assert "\x1b" not in "".join(result.sentences())


def test_a_file_name_that_is_no_text_is_a_difference(untouched: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(untouched, folder)
    (folder / "sealed" / os.fsdecode(b"\xff.jsonl")).write_bytes(b"")
    result = refused(folder, "no bundle has")
    "\n".join(result.sentences()).encode()


@pytest.mark.parametrize("what", ["link", "folder", "pipe", "linked folder"])
def test_what_is_no_plain_file_is_a_difference(untouched: Path, tmp_path: Path, what: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(untouched, folder)
    place = folder / "sealed" / "pairs.jsonl"
    if what == "link":
        place.rename(folder / "elsewhere.jsonl")
        place.symlink_to(folder / "elsewhere.jsonl")
        assert place.read_bytes() == (untouched / "sealed" / "pairs.jsonl").read_bytes()
    elif what == "folder":
        (folder / "sealed" / "sub").mkdir()
    elif what == "pipe":
        os.mkfifo(folder / "sealed" / "more.jsonl")
    else:
        (folder / "sealed").rename(folder / "real")
        (folder / "sealed").symlink_to(folder / "real")
    refused(folder, "link")


@pytest.mark.parametrize("what", ["no folder", "no sealed", "empty", "a file", "foreign", "denied"])
def test_a_missing_or_unreadable_bundle_is_an_error(
    untouched: Path, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "audit"
    if what != "no folder":
        folder.mkdir()
    if what == "a file":
        (folder / "sealed").write_text("")
    elif what in ("empty", "foreign"):
        (folder / "sealed").mkdir()
    if what == "foreign":
        (folder / "sealed" / "photo.jpg").write_text("")
    if what == "denied":  # tests may run as root, whom no permission stops
        shutil.copytree(untouched, folder, dirs_exist_ok=True)

        def deny(path: Path) -> bytes:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "read_bytes", deny)
    with pytest.raises(DataError) as error:
        found(folder)
    assert all([error.value.where, error.value.found, error.value.expected, error.value.todo])


def any_bundle_and_any_changed_byte(data: st.DataObject, folder: Path) -> None:
    """Seal a drawn bundle in the folder, verify it, change drawn bytes, and look for each."""
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    plain = st.recursive(
        st.none() | st.booleans() | st.integers() | text
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
        max_leaves=6,
    )  # fmt: skip
    rows = st.lists(st.dictionaries(text, plain, max_size=3), max_size=5)
    before, after = data.draw(rows), data.draw(rows)
    plan = {**data.draw(st.dictionaries(text, plain, max_size=3)), "test": "mirror"}

    def mirror(plan: Any, lines: Any, reveal: Any) -> dict[str, Any]:
        return {"test": "mirror", "lines": lines, "plan": plan, "reveal": reveal}

    bundle = Bundle.begin(folder, plan, before={"before": before}, secrets={"key": KEY})
    bundle.append("after", after)
    reveal = {"key": KEY}
    bundle.seal(mirror(plan, {"before": before, "after": after}, reveal), reveal=reveal)
    result = verify(folder, {"mirror": mirror})
    assert result.ok, result.differences
    files = [p for p in sorted((folder / "sealed").iterdir()) if p.stat().st_size]
    for _ in range(4):
        path = data.draw(st.sampled_from(files))
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        whole = path.read_bytes()
        path.write_bytes(content)
        result = verify(folder, {"mirror": mirror})
        assert not result.seal_holds
        word = "seal" if path.name == SEAL else path.name  # the seal is about the others
        assert any(word in difference for difference in result.differences)
        path.write_bytes(whole)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_bundle_verifies_and_any_changed_byte_is_found(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        any_bundle_and_any_changed_byte(data, Path(folder) / "audit")


@pytest.mark.slow
@pytest.mark.timeout(300)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_many_bundles_verify_and_any_changed_byte_is_found(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        any_bundle_and_any_changed_byte(data, Path(folder) / "audit")


# ---- numbers, commitments, what was published ----


def resealed(folder: Path) -> None:
    """Seal changed files anew, as a forger would."""
    paths = [p for p in (folder / "sealed").iterdir() if p.name != SEAL]
    seal = seal_of([Sealed(p.name, p.read_bytes()) for p in paths])
    (folder / "sealed" / SEAL).write_text(canonical_json(seal) + "\n")


def test_a_changed_number_is_named_by_its_path(bundle: Bundle) -> None:
    path = bundle.folder / "sealed" / "evidence.json"
    edit(path, lambda e: (e.update(p_value=1e-9), e["excluded"].update(tied=3), e.pop("n")))
    told = ("'p_value' is 1e-09, the lines give", "'excluded.tied' is 3, the lines give 0")
    result = refused(bundle.folder, *told, "'sha256'", "'n' is nothing, the lines give 6")
    assert (result.seal_holds, result.numbers_hold) == (False, False)
    resealed(bundle.folder)
    result = refused(bundle.folder, *told)
    assert (result.seal_holds, result.numbers_hold) == (True, False)
    assert "The numbers do not come out again." in result.sentences()


def test_many_differences_are_listed_in_part_and_counted(bundle: Bundle) -> None:
    path = bundle.folder / "sealed" / "evidence.json"
    edit(path, lambda e: e.update({f"more{i}": i for i in range(20)}))
    resealed(bundle.folder)
    assert "15 more differences" in refused(bundle.folder).differences[-1]


def test_floats_are_the_same_within_1e_9_and_nothing_else_is(bundle: Bundle) -> None:
    path = bundle.folder / "sealed" / "evidence.json"
    mean = json.loads(path.read_bytes())["effect"]["value"]
    for factor, same in ((1 + 5e-10, True), (1 + 2e-9, False), (-1, False)):
        edit(path, lambda e, f=factor: e["effect"].update(value=mean * f))
        resealed(bundle.folder)
        result = found(bundle.folder)
        assert (result.ok, result.numbers_hold) == (same, same)
    edit(path, lambda e: e["effect"].update(value=mean))
    for wrong in (6.0, True, "6", None, [6]):
        edit(path, lambda e, w=wrong: e.update(n=w))
        resealed(bundle.folder)
        refused(bundle.folder, "'n' is", "the lines give 6")


def test_tiny_p_values_are_held_relative_to_themselves() -> None:
    assert list(compare({"p": 1e-40}, {"p": 2e-40}, relative=1e-9))
    assert not list(compare({"p": 0.0}, {"p": -0.0}, relative=1e-9))
    assert [path for path, *_ in compare([1, [2]], [1, [2, 3], 4])] == [("1", "1"), ("2",)]


def test_a_changed_line_sealed_anew_gives_other_numbers(bundle: Bundle) -> None:
    path = bundle.folder / "sealed" / "pairs.jsonl"
    rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join(rows[:-1]))
    resealed(bundle.folder)
    refused(bundle.folder, "'n' is 6, the lines give 5")


@pytest.mark.parametrize("name", ["plan.json", "prompts.jsonl", "reveal.json"])
def test_what_was_committed_to_cannot_be_sealed_anew(bundle: Bundle, name: str) -> None:
    path = bundle.folder / "sealed" / name
    path.write_bytes(path.read_bytes().replace(b"1" if name != "reveal.json" else b"c0", b"42"))
    resealed(bundle.folder)
    assert refused(bundle.folder, "commit.json").numbers_hold is None


def test_a_forger_who_changes_everything_is_told_by_what_was_published(bundle: Bundle) -> None:
    forged = bundle.folder.parent / "forged"
    other = Bundle.begin(
        forged, {**PLAN, "alpha": 0.5}, before={"prompts": PROMPTS}, secrets={"key": KEY}
    )
    other.append("pairs", pairs(seed=9))
    lines = {name: other.lines(name) for name in ("prompts", "pairs")}
    other.seal(sign_test(PLAN, lines, {"key": KEY}), reveal={"key": KEY})
    assert found(forged).ok
    for published in ({"root": bundle.root}, {"commitment": bundle.commitment}):
        result = verify(forged, FUNCTIONS, **published)
        assert not result.ok
        assert "was published" in result.differences[0]
        assert not result.seal_holds
        assert verify(bundle.folder, FUNCTIONS, **published).ok


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2}, {"format": "another"}, {"time": "yesterday"}, {"time": 7},
        {"time": "2026-01-01T00:00:00"}, {"before": None}, {"before": {"none": {}}},
        {"secrets": []}, {"secrets": {"key": 1}}, {"secrets": {"other": "00"}}, {"plan": None},
        {"more": 1},
    ],
    ids=repr,
)  # fmt: skip
def test_an_odd_commitment_is_a_difference(bundle: Bundle, change: dict[str, Any]) -> None:
    edit(bundle.folder / "sealed" / "commit.json", lambda commit: commit.update(change))
    resealed(bundle.folder)
    result = refused(bundle.folder, "commit.json", next(iter(change)))
    assert result.numbers_hold is None


@pytest.mark.parametrize(
    "change",
    [
        {"files": {}}, {"files": 1}, {"files": {"plan.json": 3}}, {"root": None}, {"more": 1},
        {"version": 1.0}, {"files": {"\x1b[2J": {}}},
    ],
    ids=repr,
)  # fmt: skip
def test_an_odd_seal_is_a_difference(bundle: Bundle, change: dict[str, Any]) -> None:
    edit(bundle.folder / "sealed" / SEAL, lambda seal: seal.update(change))
    result = refused(bundle.folder)
    assert not result.seal_holds
    assert "\x1b" not in "".join(result.sentences())


def test_a_reveal_that_nothing_was_committed_to_is_said(tmp_path: Path) -> None:
    bundle = begun(tmp_path / "a")
    bundle.append("pairs", pairs())
    lines = {name: bundle.lines(name) for name in ("prompts", "pairs")}
    reveal = {"key": KEY, "salt": "chosen later"}
    bundle.seal(sign_test(PLAN, lines, reveal), reveal=reveal)
    result = found(tmp_path / "a")
    assert result.ok
    assert result.uncommitted == ("salt",)
    assert "Revealed, and not committed to beforehand: salt." in result.sentences()


def test_an_unsealed_bundle_is_not_ok(tmp_path: Path) -> None:
    begun(tmp_path / "a").append("pairs", pairs())
    refused(tmp_path / "a", "never sealed", "evidence.json: the file is missing")


def test_an_unknown_test_is_not_recomputed(untouched: Path) -> None:
    result = verify(untouched, {"twin": sign_test})
    assert (result.ok, result.seal_holds, result.numbers_hold) == (False, True, None)
    assert "known here are: twin" in (result.not_recomputed or "")


@pytest.mark.parametrize(
    "fault",
    [
        lambda *_: {}["missing"],
        lambda *_: 1 / 0,
        lambda *_: None,
        lambda *_: {"p": math.nan},
        lambda plan, *_: plan.nothing,
        lambda *_: int("\x1b[2J\nThe seal holds."),
        lambda *_: (_ for _ in ()).throw(EvidenceError("n", "3", "4", "Ask more")),
    ],
)
def test_an_evidence_function_that_refuses_is_a_difference(untouched: Path, fault: Any) -> None:
    result = verify(untouched, {"sign": fault})
    assert (result.ok, result.seal_holds, result.numbers_hold) == (False, True, False)
    assert "takes no such lines" in result.differences[0]
    assert all(sentence.isprintable() for sentence in result.sentences())


def test_functions_see_only_what_was_sealed(untouched: Path) -> None:
    """A changed byte may make a number huge: nothing is computed over it."""
    seen: list[Any] = []

    def watch(plan: Any, lines: Any, reveal: Any) -> dict[str, Any]:
        seen.append(plan)
        return sign_test(plan, lines, reveal)

    path = untouched / "sealed" / "plan.json"
    before = path.read_bytes()
    path.write_bytes(before.replace(b"0.05", b"0e05"))
    result = verify(untouched, {"sign": watch})
    path.write_bytes(before)
    assert not seen
    assert result.not_recomputed == "commit.json, plan.json differ from what was sealed"
    assert verify(untouched, {"sign": watch}).ok
    assert seen


# ---- alone ----


def test_verification_needs_no_torch_no_network_and_no_model(bundle: Bundle) -> None:
    code = (
        "import sys, socket\n"
        "from pathlib import Path\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        no = ('torch', 'transformers', 'safetensors', 'openai', 'httpx', 'xllamacpp')\n"
        "        if name.split('.')[0] in no or name.startswith('stillhouse.models'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "def refuse(event, given):\n"
        "    if event.startswith('socket.'):\n"
        "        raise PermissionError(event)\n"
        "sys.addaudithook(refuse)\n"
        "try:\n"
        "    socket.create_connection(('127.0.0.1', 9))\n"
        "    raise SystemExit('sockets do not refuse')\n"
        "except PermissionError:\n"
        "    pass\n"
        "from stillhouse.audit.verify import verify\n"
        "spoken = {}\n"
        "exec(sys.stdin.read(), spoken)\n"
        "result = verify(Path(sys.argv[1]), {'sign': spoken['sign_test']})\n"
        "assert not any(n.startswith('stillhouse.models') for n in sys.modules)\n"
        "print(result.ok, *result.differences)\n"
    )
    function = "from __future__ import annotations\nimport hashlib, math\n" + inspect.getsource(
        sign_test
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle.folder)],
        input=function, capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout == "True\n"
