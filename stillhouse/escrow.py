"""Escrowed twins: of two answers drawn for each request, a secret fair coin says which is served.

    DIR/key                 32 secret bytes that only their owner reads
    DIR/escrow.json         version, time and the key's commitment
    DIR/twins/              a store of the answers that were not served
    DIR/commitments.jsonl   a hash for each pair, to be published; revealed one pair at a time

In: requests and answers while collecting. Out: which of the two stores an answer belongs in, and
later the nonce that shows a pair's coin. The coin is a keyed hash of the request, so it is fixed
before either answer exists, no crash can toss it again, and nobody without the key can tell it.
Nothing here asks a model.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stillhouse.errors import DataError
from stillhouse.exchange import Exchange, Request, canonical_json
from stillhouse.files import read_secret, write_secret, write_whole
from stillhouse.merkle import inclusion_proof, is_included, leaf_hash, root_of
from stillhouse.store import Store

__all__ = [
    "Escrow", "check_pair", "check_published", "coin", "commitment", "pair_key", "published_root",
]  # fmt: skip

VERSION = 1


def pair_key(asked: Request | Exchange) -> str:
    """The `key` shared by the two requests of a pair: samples 2s and 2s + 1, whatever the seeds."""
    index = asked.sampling.sample_index or 0
    sampling = replace(asked.sampling, seed=None, sample_index=index // 2)
    return Request(prompt=asked.prompt, tools=asked.tools, sampling=sampling).key


def coin(nonce: bytes) -> int:
    """0 or 1: whether sample 2s or 2s + 1 of a pair is served."""
    return nonce[0] & 1


def commitment(nonce: bytes, served: str, twin: str) -> str:
    """What is published of a pair, in hex: binds the coin and both answers, shows neither.

    Args:
        nonce: 32 bytes, secret until revealed.
        served: id of the exchange that was served.
        twin: id of the one that was not.
    """
    return hashlib.sha256(b"stillhouse pair 1" + nonce + f"{served} {twin}".encode()).hexdigest()


def check_pair(nonce: bytes, served: Exchange, twin: Exchange) -> str | None:
    """What is wrong with a revealed pair; None where coin and samples fit."""
    one, other = served.sampling.sample_index, twin.sampling.sample_index
    if one is None or other is None or one // 2 != other // 2 or one == other:
        return f"samples {one} and {other} are no pair"
    if pair_key(served) != pair_key(twin):
        return "the two were asked differently"
    return None if one % 2 == coin(nonce) else "the coin says that the other one was served"


class Escrow:
    """An escrow's folder. Use `open` to read and `begin` to go on collecting."""

    def __init__(self, folder: Path, key: bytes, facts: Mapping[str, Any]) -> None:
        """Made by `begin` and `open`."""
        self.folder, self._key = folder, key
        self.fingerprint: str = facts["key_sha256"]
        """SHA-256 of the key: publish it before collecting."""

    @classmethod
    def find(cls, folder: Path) -> Escrow | None:
        """The escrow in a folder; None where `begin` would make one. Nothing is written.

        Raises:
            DataError: the folder holds something else, or an escrow that lost its key.
        """
        if (folder / "escrow.json").exists():
            return cls.open(folder)
        if folder.exists() and any(
            p.name not in ("key", ".escrow.json.new") for p in folder.iterdir()
        ):
            raise DataError(
                f"escrow {folder}", "a folder with other files", "an empty or new folder",
                "Choose another folder",
            )  # fmt: skip
        return None

    @classmethod
    def begin(cls, folder: Path) -> Escrow:
        """The escrow in a folder, made with a fresh key where there is none.

        Raises:
            DataError: the folder holds something else, or an escrow that lost its key.
        """
        if (there := cls.find(folder)) is not None:
            return there
        folder.mkdir(parents=True, exist_ok=True)
        key_file = folder / "key"
        if not key_file.exists() or key_file.stat().st_size != 32:  # a crash cut it short
            key_file.unlink(missing_ok=True)
            write_secret(key_file, secrets.token_bytes(32))
        facts = {
            "version": VERSION,
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "key_sha256": hashlib.sha256(key_file.read_bytes()).hexdigest(),
        }
        write_whole(folder / "escrow.json", json.dumps(facts, indent=2) + "\n")
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> Escrow:
        """The escrow in a folder.

        Raises:
            DataError: it is none, of another version, or its key is missing or another.
        """
        where = f"escrow {folder}"
        try:
            facts = json.loads((folder / "escrow.json").read_text("utf-8"))
        except (OSError, ValueError) as problem:
            raise DataError(
                where, str(problem), "escrow.json and key, as `collect --escrow` makes them",
                "Name the folder given to `collect --escrow`",
            ) from None  # fmt: skip
        if not isinstance(facts, dict) or facts.get("version") != VERSION:
            raise DataError(
                where, "another version of escrow.json", f"version {VERSION}",
                "Read it with the release of Stillhouse that wrote it",
            )  # fmt: skip
        key = read_secret(
            folder / "key", "the key that `collect --escrow` made", "Put it back from a copy"
        )
        if hashlib.sha256(key).hexdigest() != facts.get("key_sha256"):
            raise DataError(
                where, "a key that is not the one committed to", "the key made with the escrow",
                "Put it back from a copy: without it no pair can be revealed",
            )  # fmt: skip
        return cls(folder, key, facts)

    @property
    def twins(self) -> Path:
        """The store of answers that were not served."""
        return self.folder / "twins"

    def nonce(self, asked: Request | Exchange) -> bytes:
        """The pair's secret: its first bit is the coin. Showing it reveals this pair only."""
        return hmac.digest(self._key, pair_key(asked).encode(), "sha256")

    def serves(self, asked: Request | Exchange) -> bool:
        """Whether this sample of its pair is the one that is served."""
        return (asked.sampling.sample_index or 0) % 2 == coin(self.nonce(asked))

    def commit(self, served: Iterable[Exchange]) -> int:
        """How many pairs `commitments.jsonl` holds now: those it held, and those of the answers
        served whose twins are at hand.

        Written whole, in the order of the pairs' keys, which says nothing about the coins.

        Args:
            served: of one store; pairs of others that share the escrow stay as they are.

        Raises:
            DataError: a pair is committed to already, with other answers; nothing is changed.
        """
        rows = self._promises()
        for exchange, pair, mark in self._marks(served):
            if rows.setdefault(pair, mark) != mark:
                raise self._promised(f"exchange {exchange.id} is of a pair that has others")
        lines = [_line(pair, rows[pair]).decode() + "\n" for pair in sorted(rows)]
        write_whole(self.folder / "commitments.jsonl", "".join(lines))
        return len(rows)

    def refuse_promised(self, asked: Iterable[Request]) -> None:
        """Nothing, where no request belongs to a pair that is committed to: another answer would
        be none of those that were.

        Raises:
            DataError: one does: its answer was deleted, or another store was collected from the
                same prompts.
        """
        promised = self._promises()
        if promised and any(pair_key(request) in promised for request in asked):
            raise self._promised("a request left to ask is of a pair that has answers")

    def _promised(self, found: str) -> DataError:
        return DataError(
            f"escrow {self.folder}", f"{found}, which are committed to: what was published would "
            "no longer fit",
            "other prompts, or the store and the seed that they were collected with",
            "Take a fresh folder for the escrow, or put that store back",
        )  # fmt: skip

    def twins_of(self, served: Iterable[Exchange]) -> dict[str, Exchange]:
        """Exchange id -> its twin, of those that have one."""
        with Store(self.twins, "r") as store:
            twins = {pair_key(twin): twin for twin in store}
        pairs = {exchange.id: pair_key(exchange) for exchange in served}
        return {name: twins[pair] for name, pair in pairs.items() if pair in twins}

    def behind(self, served: Iterable[Exchange]) -> bool:
        """Whether the pair of some answer, its twin at hand, is not committed to as it stands."""
        promised = self._promises()
        return any(promised.get(pair) != mark for _, pair, mark in self._marks(served))

    def _promises(self) -> dict[str, str]:
        """Pair -> its commitment, of those made so far."""
        return {line["pair"]: line["commitment"] for line in self.committed()}

    def _marks(self, served: Iterable[Exchange]) -> Iterator[tuple[Exchange, str, str]]:
        """(answer, pair, commitment as it stands) of the answers whose twins are at hand."""
        with Store(self.twins, "r") as store:
            twins = {pair_key(twin): twin.id for twin in store}  # ids only: there may be millions
        for exchange in served:
            pair = pair_key(exchange)
            if pair in twins:
                yield exchange, pair, commitment(self.nonce(exchange), exchange.id, twins[pair])

    def published(self) -> dict[str, Any]:
        """What was to be published: the key's hash, how many pairs, and the root over all lines of
        `commitments.jsonl`.
        """
        lines = self.committed()
        root = published_root(lines)
        return {"key_sha256": self.fingerprint, "pairs": len(lines), "root": root}

    def committed(self) -> list[dict[str, str]]:
        """The lines of `commitments.jsonl`: `pair` and `commitment`, in their order."""
        return [json.loads(line) for line in self._lines()]

    def proofs(self, served: Iterable[Exchange]) -> dict[str, dict[str, Any]]:
        """Exchange id -> where its pair stands among the published lines, and the proof of it.

        Pairs that were not committed to are left out.
        """
        lines = self._lines()
        places = {json.loads(line)["pair"]: at for at, line in enumerate(lines)}
        leaves = [leaf_hash(line) for line in lines]
        found: dict[str, dict[str, Any]] = {}
        for exchange in served:
            pair = pair_key(exchange)
            if pair in places:
                proof = [node.hex() for node in inclusion_proof(leaves, places[pair])]
                found[exchange.id] = {"pair": pair, "index": places[pair], "proof": proof}
        return found

    def _lines(self) -> list[bytes]:
        path = self.folder / "commitments.jsonl"
        return path.read_bytes().splitlines() if path.exists() else []


def check_published(
    proof: Mapping[str, Any], commitment: str, published: Mapping[str, Any]
) -> str | None:
    """Why a commitment is not among those published; None where the proof leads to their root.

    Args:
        proof: `pair`, `index` and `proof`, as `Escrow.proofs` gives them.
        commitment: the pair's, recomputed from its nonce and answers.
        published: `root` and `pairs`, as `Escrow.published` gives them.
    """
    leaf = leaf_hash(_line(proof["pair"], commitment))
    nodes = [bytes.fromhex(node) for node in proof["proof"]]
    root = bytes.fromhex(published["root"])
    if is_included(leaf, proof["index"], published["pairs"], nodes, root):
        return None
    return "its commitment is not among those published"


def published_root(lines: Iterable[Mapping[str, str]]) -> str:
    """The root, in hex, over all lines of `commitments.jsonl`."""
    return root_of(leaf_hash(_line(x["pair"], x["commitment"])) for x in lines).hex()


def _line(pair: str, commitment: str) -> bytes:
    return canonical_json({"pair": pair, "commitment": commitment}).encode()
