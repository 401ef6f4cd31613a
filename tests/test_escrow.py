"""Escrowed twins: a coin fixed before the answers, secret, fair, and shown a pair at a time."""

from __future__ import annotations

import hashlib
import stat
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from stillhouse.errors import DataError
from stillhouse.escrow import (
    Escrow,
    check_pair,
    check_published,
    coin,
    commitment,
    pair_key,
    published_root,
)
from stillhouse.exchange import Exchange, Request, Response, Sampling, message
from stillhouse.store import Store


def request(number: int, index: int) -> Request:
    return Request(
        prompt=(message("user", f"question {number}"),),
        sampling=Sampling(temperature=1.0, seed=100 * number + index, sample_index=index),
    )


def answer(asked: Request, text: str = "yes") -> Exchange:
    return Exchange(
        time=datetime(2026, 11, 1, tzinfo=UTC), model="m", prompt=asked.prompt,
        response=Response(text=text), sampling=asked.sampling,
    )  # fmt: skip


@pytest.fixture
def escrow(tmp_path: Path) -> Escrow:
    return Escrow.begin(tmp_path / "escrow")


def fill(escrow: Escrow, count: int) -> list[Exchange]:
    """Served answers, their twins kept and committed to."""
    answers = [answer(request(n, i), f"answer {i}") for n in range(count) for i in (0, 1)]
    with Store(escrow.twins) as twins:
        twins.append_many(a for a in answers if not escrow.serves(a))
    served = [a for a in answers if escrow.serves(a)]
    assert escrow.commit(served) == count
    return served


def test_of_each_pair_one_is_served_by_a_fair_coin(escrow: Escrow) -> None:
    heads = 0
    for number in range(400):
        first, second = (escrow.serves(request(number, i)) for i in (0, 1))
        assert first != second
        heads += first
    assert 160 < heads < 240  # four standard deviations


def test_the_coin_does_not_depend_on_seed_answer_or_the_sample_asked(escrow: Escrow) -> None:
    first, second = request(1, 2), request(1, 3)
    assert pair_key(first) == pair_key(second) == pair_key(answer(first, "x"))
    assert pair_key(first) != pair_key(request(1, 4))
    assert escrow.nonce(first) == escrow.nonce(answer(second, "another"))


def test_an_escrow_opened_again_tosses_the_same_coins_and_another_tosses_others(
    escrow: Escrow, tmp_path: Path
) -> None:
    again, other = Escrow.begin(escrow.folder), Escrow.begin(tmp_path / "other")
    tosses = [[e.serves(request(n, 0)) for n in range(64)] for e in (escrow, again, other)]
    assert tosses[0] == tosses[1] != tosses[2]


def test_the_key_is_the_owners_alone_and_its_hash_is_what_is_published(escrow: Escrow) -> None:
    key = escrow.folder / "key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert escrow.fingerprint == hashlib.sha256(key.read_bytes()).hexdigest()


def test_each_pair_is_among_those_published_and_shows_only_itself(escrow: Escrow) -> None:
    served = fill(escrow, 9)
    published, proofs = escrow.published(), escrow.proofs(served)
    assert published["pairs"] == 9
    assert len(proofs) == 9
    with Store(escrow.twins, "r") as store:
        twins = {pair_key(twin): twin for twin in store}
    for exchange in served:
        twin, nonce = twins[pair_key(exchange)], escrow.nonce(exchange)
        assert check_pair(nonce, exchange, twin) is None
        mark = commitment(nonce, exchange.id, twin.id)
        assert check_published(proofs[exchange.id], mark, published) is None
        swapped = commitment(nonce, twin.id, exchange.id)
        assert "not among" in str(check_published(proofs[exchange.id], swapped, published))
    lines = (escrow.folder / "commitments.jsonl").read_text()
    assert not any(e.id in lines or escrow.nonce(e).hex() in lines for e in served)


def test_a_pair_that_was_not_committed_to_has_no_proof(escrow: Escrow) -> None:
    fill(escrow, 3)
    assert escrow.proofs([answer(request(7, 0))]) == {}
    assert Escrow.begin(escrow.folder.parent / "empty").published()["pairs"] == 0


def test_a_second_store_keeps_what_the_first_one_committed_to(escrow: Escrow) -> None:
    first = fill(escrow, 3)
    lines = escrow.committed()
    more = [answer(request(n, i), f"more {i}") for n in (7, 8) for i in (0, 1)]
    second = [a for a in more if escrow.serves(a)]
    with Store(escrow.twins) as twins:
        twins.append_many(a for a in more if not escrow.serves(a))
    assert not escrow.behind(first)
    assert escrow.behind(second)
    assert escrow.commit(second) == 5
    assert not escrow.behind(second)
    assert all(line in escrow.committed() for line in lines)
    assert escrow.commit(first) == 5
    twin_of, proofs = escrow.twins_of(first + second), escrow.proofs(first + second)
    for exchange in first + second:
        mark = commitment(escrow.nonce(exchange), exchange.id, twin_of[exchange.id].id)
        assert check_published(proofs[exchange.id], mark, escrow.published()) is None
    assert published_root(escrow.committed()) == escrow.published()["root"]


def test_a_pair_is_never_committed_to_with_other_answers(escrow: Escrow) -> None:
    (served,) = fill(escrow, 1)
    lines = (escrow.folder / "commitments.jsonl").read_bytes()
    with pytest.raises(DataError, match="would no longer fit"):
        escrow.commit([replace(served, response=Response(text="another"))])
    assert (escrow.folder / "commitments.jsonl").read_bytes() == lines


def test_pairs_that_are_none_are_told(escrow: Escrow) -> None:
    served, twin = answer(request(1, 0)), answer(request(1, 1))
    nonce = bytes([0]) + bytes(31)
    assert coin(nonce) == 0
    assert check_pair(nonce, served, twin) is None
    assert "other one was served" in str(check_pair(nonce, twin, served))
    assert "are no pair" in str(check_pair(nonce, served, answer(request(1, 3))))
    assert "are no pair" in str(check_pair(nonce, served, served))
    assert "asked differently" in str(check_pair(nonce, served, answer(request(2, 1))))
    bare = replace(twin, sampling=replace(twin.sampling, sample_index=None))
    assert "are no pair" in str(check_pair(nonce, served, bare))


# ---- refusals ----


def test_a_folder_with_other_files_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="other files"):
        Escrow.begin(tmp_path)


def test_what_is_no_escrow_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"escrow\.json"):
        Escrow.open(tmp_path)


def test_another_version_is_refused(escrow: Escrow) -> None:
    (escrow.folder / "escrow.json").write_text('{"version": 2}')
    with pytest.raises(DataError, match="another version"):
        Escrow.open(escrow.folder)


def test_an_exchanged_or_lost_key_is_refused(escrow: Escrow) -> None:
    (escrow.folder / "key").write_bytes(bytes(32))
    with pytest.raises(DataError, match="not the one committed to"):
        Escrow.begin(escrow.folder)
    (escrow.folder / "key").unlink()
    with pytest.raises(DataError, match="key"):
        Escrow.open(escrow.folder)


def test_a_key_that_a_crash_cut_short_is_made_again_before_anything_was_committed(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "escrow"
    folder.mkdir()
    (folder / "key").write_bytes(b"short")
    assert len((Escrow.begin(folder).folder / "key").read_bytes()) == 32
