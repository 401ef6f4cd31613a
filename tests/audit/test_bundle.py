"""Making a bundle: what is given is sealed, crashes lose nothing, every refusal has words."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stillhouse.audit.bundle import Bundle
from stillhouse.audit.seal import SEAL
from stillhouse.audit.verify import verify
from stillhouse.errors import ConfigError, DataError, EvidenceError
from stillhouse.exchange import canonical_json
from stillhouse.merkle import leaf_hash, root_of
from tests.audit import bundle_writer
from tests.audit.bundles import (
    KEY,
    PLAN,
    PROMPTS,
    begun,
    edit,
    found,
    pairs,
    sealed,
)

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return sealed(tmp_path / "audit")


# ---- whole bundles ----


def test_a_sealed_bundle_verifies_and_says_so(bundle: Bundle) -> None:
    result = found(bundle.folder)
    assert result.ok, result.differences
    assert (result.seal_holds, result.numbers_hold, result.differences) == (True, True, ())
    assert result.lines_read == 12
    assert (result.root, result.commitment) == (bundle.root, bundle.commitment)
    assert result.plan == PLAN
    assert result.evidence is not None
    assert result.evidence["n"] == 6
    assert result.uncommitted == ()
    assert 0 < result.seconds < 2
    told = result.sentences()
    assert "12 raw lines" in told[1]
    assert "No form was filled in." in told


def test_the_sealed_files_are_those_of_the_contract_and_canonical(bundle: Bundle) -> None:
    names = {path.name for path in (bundle.folder / "sealed").iterdir()}
    assert names == {
        "commit.json", "plan.json", "prompts.jsonl", "pairs.jsonl", "reveal.json",
        "evidence.json", "seal.json",
    }  # fmt: skip
    for name in names:
        text = (bundle.folder / "sealed" / name).read_text("utf-8")
        rows = text.split("\n")
        assert rows.pop() == ""
        assert rows == [canonical_json(json.loads(row)) for row in rows]
    assert [path.name for path in bundle.folder.glob(".*")] == []


def test_commitment_and_seal_are_what_anybody_can_compute(bundle: Bundle) -> None:
    folder = bundle.folder / "sealed"
    hashes = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    commit = json.loads((folder / "commit.json").read_bytes())
    assert commit["plan"] == hashes["plan.json"]
    assert commit["secrets"] == {"key": hashlib.sha256(KEY.encode()).hexdigest()}
    leaves = [leaf_hash(canonical_json(row).encode()) for row in PROMPTS]
    assert commit["before"] == {"prompts": {"lines": 6, "merkle_root": root_of(leaves).hex()}}
    assert bundle.commitment == hashes["commit.json"]
    seal = json.loads((folder / SEAL).read_bytes())
    assert {n: e["sha256"] for n, e in seal["files"].items()} == {
        name: value for name, value in hashes.items() if name != SEAL
    }
    entries = ({"name": name, **seal["files"][name]} for name in sorted(seal["files"]))
    assert seal["root"] == root_of(leaf_hash(canonical_json(e).encode()) for e in entries).hex()


def test_a_bundle_of_no_lines_and_no_secrets_verifies(tmp_path: Path) -> None:
    def nothing(plan: Any, lines: Any, reveal: Any) -> dict[str, Any]:
        return {"test": "none", "files": {n: len(rows) for n, rows in lines.items()}, **reveal}

    bundle = Bundle.begin(tmp_path / "a", {"test": "none"})
    bundle.append("pairs", [])
    assert bundle.lines("pairs") == bundle.lines("never") == []
    bundle.seal({"test": "none", "files": {"pairs": 0}})
    result = verify(tmp_path / "a", {"none": nothing})
    assert result.ok, result.differences


def test_lines_read_back_as_they_were_given(tmp_path: Path) -> None:
    rows = [{"ü": " \n\u2028", "b": [1, 1.0, -0.0, 1e-300, None, True]}, {}, {"a": {"b": {}}}]
    bundle = begun(tmp_path / "a")
    bundle.append("odd", rows[:1])
    bundle.append("odd", (row for row in rows[1:]))
    assert bundle.lines("odd") == rows
    assert repr(bundle.lines("odd")[0]["b"]) == repr(rows[0]["b"])


# ---- going on ----


def test_beginning_again_goes_on_and_keeps_the_commitment(tmp_path: Path) -> None:
    first = begun(tmp_path / "a")
    first.append("pairs", pairs()[:2])
    again = begun(tmp_path / "a")
    assert again.commitment == first.commitment
    assert again.lines("pairs") == pairs()[:2]
    assert again.torn == 0
    again.append("pairs", pairs()[2:])
    assert again.lines("pairs") == pairs()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"plan": {**PLAN, "alpha": 0.01}}, "plan key 'alpha' is 0.01"),
        ({"plan": {**PLAN, "seeds": [1, 3]}}, "plan key 'seeds.1' is 3"),
        ({"plan": {**PLAN, "more": 1}}, "plan key 'more' is 1, and the bundle was begun with not"),
        ({"plan": {"test": "sign"}}, "plan key 'alpha' is nothing"),
        ({"before": {"prompts": PROMPTS[:5]}}, "'before.prompts.lines' is 5"),
        ({"before": {"prompts": PROMPTS[::-1]}}, "'before.prompts.merkle_root'"),
        ({"before": {}}, "'before.prompts' is nothing"),
        ({"before": {"prompts": PROMPTS, "more": []}}, "'before.more'"),
        ({"secrets": {"key": "another secret text"}}, "'secrets.key'"),
        ({"secrets": {}}, "'secrets.key' is nothing"),
    ],
)
def test_another_plan_is_refused_by_its_key(
    tmp_path: Path, changes: dict[str, Any], word: str
) -> None:
    begun(tmp_path / "a")
    with pytest.raises(ConfigError, match="was fixed beforehand") as error:
        begun(tmp_path / "a", **changes)
    assert word in str(error.value)


def test_a_sealed_bundle_is_not_gone_on_with(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="sealed already"):
        begun(bundle.folder)
    with pytest.raises(ConfigError, match="is sealed"):
        bundle.append("pairs", pairs())
    with pytest.raises(ConfigError, match="is sealed"):
        bundle.seal({"test": "sign"}, reveal={"key": KEY})
    assert found(bundle.folder).ok


def test_what_was_fixed_beforehand_is_not_appended_to(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="its lines are in the commitment"):
        begun(tmp_path / "a").append("prompts", PROMPTS)


@pytest.mark.parametrize("name", ["plan.json", "prompts.jsonl"])
def test_committed_files_that_changed_are_refused(tmp_path: Path, name: str) -> None:
    bundle = begun(tmp_path / "a")
    path = tmp_path / "a" / "sealed" / name
    path.write_bytes(path.read_bytes().replace(b"1", b"2"))
    with pytest.raises(DataError, match="changed after it was committed to"):
        begun(tmp_path / "a")
    with pytest.raises(DataError, match="as committed to"):
        bundle.seal({"test": "sign"}, reveal={"key": KEY})
    if name != "plan.json":
        path.unlink()
        with pytest.raises(DataError, match="changed after it was committed to"):
            begun(tmp_path / "a")


def test_a_commitment_written_over_is_refused(tmp_path: Path) -> None:
    bundle = begun(tmp_path / "a")
    path = tmp_path / "a" / "sealed" / "commit.json"
    edit(path, lambda commit: commit.update(time="2020-01-01T00:00:00+00:00"))
    with pytest.raises(DataError, match=r"commit\.json: it was changed"):
        bundle.seal({"test": "sign"}, reveal={"key": KEY})
    path.write_text("")
    with pytest.raises(DataError, match=r"commit\.json: 0 lines"):
        begun(tmp_path / "a")


@pytest.mark.parametrize("what", ["file", "folder", "link", "before"])
def test_foreign_things_are_refused(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "a" / "sealed"
    bundle = begun(tmp_path / "a") if what != "before" else None
    folder.mkdir(parents=True, exist_ok=True)
    if what == "folder":
        (folder / "pairs.jsonl").mkdir()
    elif what == "link":
        (folder / "pairs.jsonl").symlink_to(folder / "plan.json")
    else:
        (folder / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="lies in sealed/"):
        begun(tmp_path / "a")
    if bundle is not None:
        with pytest.raises(ConfigError, match="lies in sealed/"):
            bundle.seal({"test": "sign"}, reveal={"key": KEY})


# ---- refusals ----


@pytest.mark.parametrize("name", ["", "Pairs", "a/b", "../up", "a.b", "plan.json", "1a", "a" * 65])
def test_names_that_no_file_system_agrees_on_are_refused(tmp_path: Path, name: str) -> None:
    bundle = begun(tmp_path / "a")
    for act in (
        lambda: bundle.append(name, []),
        lambda: bundle.lines(name),
        lambda: begun(tmp_path / "b", before={name: []}),
    ):
        with pytest.raises(ConfigError, match="small letters"):
            act()


@pytest.mark.parametrize(
    "line",
    [
        {"p": math.nan}, {"p": math.inf}, {"p": {1, 2}}, {1: "a", "1": "b"}, {2: 1, 10: 1},
        {"half": "\ud800"}, [1], "text", None, {"p": b"raw"},
    ],
    ids=repr,
)  # fmt: skip
def test_values_without_a_canonical_form_are_refused(tmp_path: Path, line: Any) -> None:
    bundle = begun(tmp_path / "a")
    with pytest.raises(DataError, match=r"line 2 given.*has no canonical form"):
        bundle.append("pairs", [{"fine": 1}, line])
    assert bundle.lines("pairs") == []
    with pytest.raises(DataError, match=r"plan: .*has no canonical form"):
        begun(tmp_path / "b", plan=line)
    with pytest.raises(DataError, match=r"evidence: .*has no canonical form"):
        bundle.seal(line, reveal={"key": KEY})


def test_depth_without_end_is_refused(tmp_path: Path) -> None:
    line: dict[str, Any] = {}
    line["self"] = line
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"d": deep}
    for bad in (line, deep, 10**5000):
        with pytest.raises(DataError, match="no canonical form"):
            Bundle.begin(tmp_path / "a", {"test": "sign", "bad": bad})
        with pytest.raises(ConfigError, match="the name of a test"):
            Bundle.begin(tmp_path / "a", {"test": [1]})


@pytest.mark.parametrize("plan", [{}, {"test": 1}, {"test": None}])
def test_a_plan_names_its_test(tmp_path: Path, plan: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="the name of a test"):
        Bundle.begin(tmp_path / "a", plan)


@pytest.mark.parametrize(
    ("secret", "words"), [("short", "5 bytes"), (12, "a int"), ("\ud800" * 20, "canonical form")]
)
def test_secrets_that_can_be_guessed_are_refused(tmp_path: Path, secret: Any, words: str) -> None:
    with pytest.raises((ConfigError, DataError), match=words):
        Bundle.begin(tmp_path / "a", PLAN, secrets={"key": secret})


@pytest.mark.parametrize(
    ("reveal", "words"),
    [
        ({}, "not revealed"),
        ({"key": KEY + "0"}, "another value"),
        ({"key": 7}, "another value"),
    ],
)
def test_every_secret_is_revealed_as_committed(
    tmp_path: Path, reveal: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        begun(tmp_path / "a").seal({"test": "sign"}, reveal=reveal)


@pytest.mark.parametrize("evidence", [{}, {"test": "twin"}])
def test_evidence_of_another_test_is_not_sealed(tmp_path: Path, evidence: dict[str, Any]) -> None:
    with pytest.raises(EvidenceError, match="as the plan says"):
        begun(tmp_path / "a").seal(evidence, reveal={"key": KEY})


def test_a_second_writer_is_noticed(tmp_path: Path) -> None:
    one = begun(tmp_path / "a")
    one.append("pairs", pairs()[:1])
    other = begun(tmp_path / "a")
    other.append("pairs", pairs()[1:2])
    with pytest.raises(DataError, match="written by something else"):
        one.append("pairs", pairs()[2:3])
    with pytest.raises(DataError, match="written by something else"):
        one.seal({"test": "sign"}, reveal={"key": KEY})
    assert other.lines("pairs") == pairs()[:2]


def test_writers_wait_for_one_another(tmp_path: Path) -> None:
    bundle = begun(tmp_path / "a")
    threads = [
        threading.Thread(target=bundle.append, args=("pairs", [{"n": i}] * 20)) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    numbers = [row["n"] for row in bundle.lines("pairs")]
    assert sorted(numbers) == sorted(list(range(8)) * 20)
    assert all(len(set(numbers[i : i + 20])) == 1 for i in range(0, 160, 20))


def test_a_full_disk_keeps_nothing_of_an_append(tmp_path: Path) -> None:
    """A file size limit stands for a full disk: it cuts a write in the middle."""
    bundle = begun(tmp_path / "a")
    bundle.append("pairs", pairs())
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from stillhouse.errors import DataError\n"
        "from tests.audit.bundles import begun, pairs\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "bundle = begun(Path(sys.argv[1]))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "try:\n"
        "    bundle.append('pairs', [{'text': 'x' * 3000}])\n"
        "except DataError as problem:\n"
        "    print(problem)\n"
        "bundle.append('pairs', [{'more': 1}])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle.folder)],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    assert "appending failed" in done.stdout
    assert begun(bundle.folder).lines("pairs") == [*pairs(), {"more": 1}]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="beginning it failed"):
        begun(tmp_path / "file")


# ---- crashes ----


def test_a_torn_last_line_is_dropped_and_counted_wherever_it_was_cut(tmp_path: Path) -> None:
    bundle = begun(tmp_path / "a")
    bundle.append("pairs", pairs())
    path = tmp_path / "a" / "sealed" / "pairs.jsonl"
    whole = path.read_bytes()
    kept = whole.rfind(b"\n", 0, -1) + 1
    for cut in range(kept, len(whole)):
        path.write_bytes(whole[:cut])
        again = begun(tmp_path / "a")
        assert again.torn == (cut > kept)
        assert path.read_bytes() == whole[:kept]
    again.append("pairs", pairs()[-1:])
    assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", [b"\0", b"[1]", b'{"a": 1}', b'"' + b"0" * 64 + b'"'])
def test_a_damaged_whole_line_is_an_error_not_a_torn_one(tmp_path: Path, damage: bytes) -> None:
    bundle = begun(tmp_path / "a")
    bundle.append("pairs", pairs())
    path = tmp_path / "a" / "sealed" / "pairs.jsonl"
    path.write_bytes(path.read_bytes() + damage + b"\n")
    for act in (lambda: begun(tmp_path / "a"), lambda: bundle.lines("pairs")):
        with pytest.raises(DataError, match="canonical lines"):
            act()


def test_nothing_acknowledged_is_lost_when_writers_are_killed(tmp_path: Path) -> None:
    """Beginning, appending and sealing: eight kills at random times, sixteen at random writes."""
    chance, torn, number, promised = random.Random(3), 0, 0, -1
    with bundle_writers() as (process, pipe):
        for kill in range(24):
            folder = tmp_path / f"bundle-{number}"
            promised = killed(process, pipe, folder, chance, promised, timed=kill % 3 == 0)
            if not (folder / "sealed" / SEAL).exists():
                assert promised < bundle_writer.SEALED
                bundle = bundle_writer.begin(folder)
                torn += bundle.torn
                kept = bundle.lines("answers")
                assert kept == [bundle_writer.line(i) for i in range(len(kept))]
                assert len(kept) > promised
                if len(kept) < bundle_writer.LINES:
                    continue
                bundle_writer.seal(bundle)
            result = verify(folder, {"count": bundle_writer.count})
            assert result.ok, result.differences
            assert result.lines_read == 2 * bundle_writer.LINES
            number, promised = number + 1, -1
    assert number, "no bundle was ever finished"
    assert torn, "no kill hit the middle of a line"


@contextmanager
def bundle_writers() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The process that forks writers, and the pipe they acknowledge lines on."""
    ours, theirs = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.audit.bundle_writer", str(theirs)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[theirs], cwd=ROOT,
    )  # fmt: skip
    os.close(theirs)
    try:
        with process:
            yield process, ours
            assert process.stdin
            process.stdin.close()
            assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def killed(
    process: subprocess.Popen[str], pipe: int, folder: Path, chance: random.Random, last: int,
    *, timed: bool,
) -> int:  # fmt: skip
    """Let a writer make a bundle until it is killed; the last line that it acknowledged."""
    assert process.stdin
    assert process.stdout
    calls = 0 if timed else chance.choice([chance.randrange(1, 40), chance.randrange(1, 300)])
    process.stdin.write(f"{folder}\t{calls}\n")
    process.stdin.flush()
    writer = int(process.stdout.readline())
    if timed:
        time.sleep(chance.uniform(0, 0.1))
        os.kill(writer, signal.SIGKILL)
    assert process.stdout.readline() == "reaped\n"
    while select.select([pipe], [], [], 0)[0]:
        *_, (last,) = bundle_writer.ACKNOWLEDGED.iter_unpack(os.read(pipe, 1 << 12))
    return last
