"""What a model's reading of pairs may follow from: their texts, never which side was served."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from stillhouse.audit.pair_checks import SIDES
from stillhouse.audit.scoring import read_scores
from stillhouse.errors import ModelError, TransportError
from stillhouse.exchange import Exchange, Response, Sampling, message, to_dict
from stillhouse.models.local import LocalModel
from stillhouse.models.scripted import ScriptedModel
from stillhouse.progress import Silent
from tests.audit.bundles import begun


def line(prompt: str, text: str, ended: str) -> dict[str, Any]:
    answer = Exchange(
        time=datetime(2026, 5, 1, tzinfo=UTC), model="t", prompt=(message("user", prompt),),
        response=Response(text=text), finish_reason=ended, sampling=Sampling(temperature=1.0),
    )  # fmt: skip
    return to_dict(answer)


def pairs() -> list[dict[str, Any]]:
    """Of some pairs both answers have the same words, and only one of them ended."""
    found = []
    for n in range(24):
        prompt, twin = "Tell me " + "more " * (n % 5) + str(n), f"It snows, {n}."
        served = twin if n % 6 == 0 else "It rains. " * (1 + n % 4)
        sides = {"served": line(prompt, served, "stop"), "twin": line(prompt, twin, "length")}
        found.append({"exchange": f"e{n}", **sides})
    return found


def test_an_answer_is_read_to_the_same_bits_whichever_side_was_served(
    llama: Path, tmp_path: Path
) -> None:
    """In every other pair served answer and twin change places."""
    turned = {pair["exchange"] for pair in pairs()[::2]}
    read: list[dict[tuple[str, str], list[float]]] = []
    with LocalModel(llama, spec="hf:tiny") as model:
        for name in ("there", "back"):
            given = [
                pair | {"served": pair["twin"], "twin": pair["served"]}
                if name == "back" and pair["exchange"] in turned
                else pair
                for pair in pairs()
            ]
            bundle = begun(tmp_path / name)
            read_scores(model, "suspect", given, bundle, Silent())
            read.append({(s["exchange"], s["side"]): s["logprobs"] for s in bundle.lines("scores")})
    there, back = read
    for pair in pairs():
        sides = SIDES[::-1] if pair["exchange"] in turned else SIDES
        for before, after in zip(SIDES, sides, strict=True):
            assert there[pair["exchange"], before]
            assert there[pair["exchange"], before] == back[pair["exchange"], after]


def test_a_server_that_is_gone_leaves_no_lines_of_what_it_did_not_read(tmp_path: Path) -> None:
    class Leaves(ScriptedModel):
        """Refuses to read several texts at once, and is gone after the third."""

        read = 0

        def score(self, exchanges: Any, *, top_logprobs: int = 0) -> Any:
            if len(exchanges) > 1:
                raise ModelError("here", "too long", "less", "Leave one out")
            self.read += 1
            if self.read > 3:
                raise TransportError("here", "gone", "there", "Wait")
            return super().score(exchanges, top_logprobs=top_logprobs)

    bundle = begun(tmp_path)
    with pytest.raises(TransportError):
        read_scores(
            Leaves("bigram", spec="scripted:bigram"), "suspect", pairs(), bundle, Silent()
        )  # fmt: skip
    assert not bundle.lines("scores")
    read_scores(
        ScriptedModel("bigram", spec="scripted:bigram"), "suspect", pairs(), bundle, Silent()
    )
    assert all(line["logprobs"] for line in bundle.lines("scores"))
