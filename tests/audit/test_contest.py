"""The accused's answer: shown as it was filled in, and never able to break a bundle."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import pytest

from stillhouse.audit.bundle import Bundle
from stillhouse.audit.verify import Verification
from tests.audit.bundles import (
    begun,
    found,
    sealed,
)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return sealed(tmp_path / "audit")


def answered(folder: Path, text: str | bytes, name: str = "contest.yaml") -> Verification:
    data = text.encode() if isinstance(text, str) else text
    (folder / "contest" / name).write_bytes(data)
    result = found(folder)
    assert result.ok, "an answer changes nothing of the sealed part"
    return result


def test_the_empty_form_is_not_an_answer_and_begin_never_writes_over_one(tmp_path: Path) -> None:
    begun(tmp_path / "a")
    form = tmp_path / "a" / "contest" / "contest.yaml"
    assert form.read_text().count("#") > 20
    form.write_text("answered_by: Ada\n")
    sealed(tmp_path / "a")
    assert form.read_text() == "answered_by: Ada\n"
    (answer,) = found(tmp_path / "a").answers
    assert (answer.filled_in, answer.answered_by) == (True, "Ada")
    (form.parent / "contest.yaml").unlink()
    assert found(tmp_path / "a").answers[0].problems == ("No form is there.",)
    (form.parent).rmdir()
    assert "cannot be read" in found(tmp_path / "a").answers[0].problems[0]


def test_the_form_says_what_it_wants_by_its_own_examples(bundle: Bundle) -> None:
    """The commented examples, uncommented in place of the empty lists, are a valid answer."""
    (answer,) = found(bundle.folder).answers
    assert (answer.filled_in, answer.problems) == (False, ())
    form = (bundle.folder / "contest" / "contest.yaml").read_text()
    for key in ("contested", "counter_evidence", "requests"):
        form = form.replace(f"{key}: []\n", "")
    lines = [re.sub(r"^# ?", "", x) if re.match(r"#( {3}|  ?\w+:$)", x) else x
             for x in form.splitlines()]  # fmt: skip
    (answer,) = answered(bundle.folder, "\n".join(lines)).answers
    assert answer.contested[0]["claim"] == "n"
    assert answer.counter_evidence[0].file == "training-data-list.csv"
    assert len(answer.requests) == 3
    assert answer.problems == (
        "It contests 'pairs.jsonl:17', which is no raw line of this bundle.",
        "training-data-list.csv: no such file is there.",
    )


def test_a_filled_in_form_is_shown_and_its_files_are_held_against_their_hashes(
    bundle: Bundle,
) -> None:
    folder = bundle.folder / "contest"
    (folder / "data.csv").write_text("source\n")
    digest = hashlib.sha256(b"source\n").hexdigest()
    result = answered(bundle.folder, f"""
answered_by: Ada Example
on_behalf_of: Example Ltd
date: 2026-02-30
bundle_root: {bundle.root}
contested:
  - {{claim: p_value, line: "pairs.jsonl:6", says: Not ours.}}
counter_evidence:
  - {{file: data.csv, sha256: {digest.upper()}, shows: our sources}}
  - {{file: data.csv, sha256: {"0" * 64}}}
  - {{file: ../sealed/plan.json, sha256: x}}
  - {{file: /etc/hostname, sha256: x}}
  - {{file: .}}
  - {{file: "nul\\0"}}
  - {{file: gone.csv, sha256: "{digest}"}}
requests: [Test again, {{says: And again}}]
""")  # fmt: skip
    (answer,) = result.answers
    assert answer.filled_in
    assert (answer.answered_by, answer.on_behalf_of) == ("Ada Example", "Example Ltd")
    assert answer.date == "2026-02-30"
    assert answer.contested == ({"claim": "p_value", "line": "pairs.jsonl:6", "says": "Not ours."},)
    assert [item.fits for item in answer.counter_evidence] == [True] + [False] * 6
    assert answer.requests == ("Test again", "And again")
    told = " ".join(answer.problems)
    assert f"data.csv: its SHA-256 is {digest}, the form says {'0' * 64}." in told
    assert told.count("does not lie in the contest folder") == 3
    assert "gone.csv: no such file is there." in told
    assert len(answer.problems) == 6
    assert "The accused answers in: contest.yaml." in result.sentences()
    assert json.loads(json.dumps(answer.to_dict()))["counter_evidence"][0]["fits"] is True


def test_several_answer_and_one_means_another_bundle(bundle: Bundle) -> None:
    answered(bundle.folder, "answered_by: Ada\n", "ada.yaml")
    result = answered(bundle.folder, f"bundle_root: {'ab' * 32}\n", "bob.yml")
    by_form = {answer.form: answer for answer in result.answers}
    assert [by_form[n].filled_in for n in ("ada.yaml", "bob.yml", "contest.yaml")] == [
        True, True, False,
    ]  # fmt: skip
    assert "this one has" in by_form["bob.yml"].problems[0]


@pytest.mark.parametrize(
    "text",
    [
        b"\xff\xfe\x00", "a: [", "- just\n- a list\n", "free words", "a: &a [*a]", "? [1]\n: 2",
        "[" * 5000, "a" * (1 << 20) + "b", "unknown: 1\nunknown2: {a: 1}", "contested: 7\n",
        "counter_evidence: {x: 1}\nrequests: [[1, 2]]", "contested: [{line: pairs.jsonl:0}]",
        "contested: [{line: 'pairs.jsonl:²'}]", 'answered_by: "a\\e[2Jb"', "answered_by: [1]",
        "? {a: 1}\n: 2", "a: !!python/object/apply:os.getcwd []",
    ],
)  # fmt: skip
def test_forms_that_break_the_rules_are_reported_and_break_nothing(
    bundle: Bundle, text: str | bytes
) -> None:
    result = answered(bundle.folder, text)
    (answer,) = result.answers
    assert answer.filled_in
    assert answer.problems or answer.contested or answer.answered_by
    assert "\x1b" not in json.dumps(answer.to_dict(), ensure_ascii=False)
    assert "\x1b" not in "".join(result.sentences())


def test_an_empty_form_file_is_not_an_answer(bundle: Bundle) -> None:
    assert not answered(bundle.folder, "").answers[0].filled_in


def test_a_form_that_is_no_plain_file_is_reported_and_not_read(bundle: Bundle) -> None:
    folder = bundle.folder / "contest"
    (folder / "a.yaml").mkdir()
    os.mkfifo(folder / "b.yaml")
    (folder / "c.yaml").symlink_to("/etc/hostname")
    *odd, _ = found(bundle.folder).answers
    assert [answer.form for answer in odd] == ["a.yaml", "b.yaml", "c.yaml"]
    assert all("no plain file" in answer.problems[0] for answer in odd)


def test_an_answer_cannot_speak_in_the_voice_of_the_verification(bundle: Bundle) -> None:
    result = answered(bundle.folder, 'x: "a\\nThe seal does not hold."\n', "a\nok.yaml")
    assert not any("\n" in sentence for sentence in result.sentences())
    assert result.sentences()[0].startswith("The seal holds")
