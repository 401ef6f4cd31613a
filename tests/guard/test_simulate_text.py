"""What simulated people, programs and campaigns write."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from stillhouse.errors import DataError
from stillhouse.guard.simulate_accounts import KINDS, LANGUAGES, Accounts, benign_accounts
from stillhouse.guard.simulate_campaign import SMALLEST_BYTES
from stillhouse.guard.simulate_prompts import read_pool
from stillhouse.guard.simulate_rates import open_rates
from stillhouse.guard.simulate_settings import CampaignSettings, SimulateSettings
from stillhouse.guard.simulate_text import BenignText, Turn
from stillhouse.guard.simulate_words import Writer, mix
from stillhouse.guard.simulate_wrappers import CampaignText
from stillhouse.settings import make

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "prompts"
CAPABILITIES = (
    "reasoning_elicitation", "rubric_grading", "sensitive_rewriting", "tool_use", "code",
    "data_analysis", "computer_use", "vision",
)  # fmt: skip


@pytest.fixture(scope="module")
def accounts() -> Accounts:
    spec = make(SimulateSettings, {"benign": {"accounts": 2000}}, where="test")
    return benign_accounts(spec, open_rates(None))


def of(accounts: Accounts, name: str) -> list[int]:
    code = next(code for code, kind in enumerate(KINDS) if kind.name == name)
    return [int(row) for row in np.flatnonzero(accounts.kind == code)]


def said(asked: object) -> str:
    messages = asked.messages  # type: ignore[attr-defined]
    return messages[-1]["content"] if isinstance(messages[-1]["content"], str) else "image"


def shingles(text: str) -> set[str]:
    return {text[at : at + 8] for at in range(len(text) - 7)}


def likeness(one: str, other: str) -> float:
    a, b = shingles(one), shingles(other)
    return len(a & b) / max(len(a | b), 1)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_makes_thousands_of_different_sentences_and_requests(language: str) -> None:
    writer = Writer()
    writer.seed(1)
    assert len({writer.sentence(language) for _ in range(2000)}) > 1980
    assert len({writer.request(language) for _ in range(2000)}) > 1700
    text = writer.passage(language, 400)
    assert "{" not in text
    assert 350 < len(text.encode()) < 620


def test_what_a_seed_makes_can_be_made_again() -> None:
    writer = Writer()
    made = []
    for _ in range(2):
        writer.seed(5, 6)
        made.append((writer.code(200), writer.table(200), writer.logs(200), writer.request("ru")))
    assert made[0] == made[1]
    assert mix(1, 2) != mix(2, 1)


def test_people_rarely_say_the_same(accounts: Accounts) -> None:
    text, rows = BenignText(7, ()), of(accounts, "light_user")
    turns = [said(text.asked(accounts, r, Turn(r * 31 + 1, 0, 200, -1))) for r in rows]
    assert len(set(turns)) > 0.95 * len(turns)


def test_keys_of_a_firm_share_their_template_and_nothing_else(accounts: Accounts) -> None:
    text = BenignText(7, ())
    rows = of(accounts, "synthetic_data")
    group = [r for r in rows if accounts.group[r] == accounts.group[rows[0]]]
    assert len(group) >= 2
    one, other = (text.asked(accounts, r, Turn(100 + r, 0, 400, -1)).messages for r in group[:2])
    lead = text.context(accounts, group[0]).lead
    assert lead
    assert one[-1]["content"].startswith(lead)
    assert other[-1]["content"].startswith(lead)
    assert one[0] == other[0]
    assert one[-1] != other[-1]


def test_students_of_a_class_ask_the_same_and_evaluators_the_same_items(accounts: Accounts) -> None:
    text, rows = BenignText(7, ()), of(accounts, "class_hackathon")
    mates = [r for r in rows if accounts.group[r] == accounts.group[rows[0]]]
    answers = [said(text.asked(accounts, r, Turn(r, 0, 200, 5))) for r in mates]
    assert len(set(answers)) < 0.8 * len(answers)
    pool = tuple(f"item {at}" for at in range(50))
    bench, row = BenignText(7, pool), of(accounts, "benchmark")[0]
    assert any(item in said(bench.asked(accounts, row, Turn(1, 0, 300, 4))) for item in pool)


def test_agents_of_one_program_share_system_prompt_and_tools(accounts: Accounts) -> None:
    text, rows = BenignText(7, ()), of(accounts, "agent_client")
    users = [r for r in rows if accounts.group[r] == accounts.group[rows[0]]][:5]
    found = [text.asked(accounts, r, Turn(r, 3, 200, -1)) for r in users]
    assert len({asked.messages[0]["content"] for asked in found}) == 1
    assert all(asked.tools == found[0].tools and asked.tools for asked in found)


def test_earlier_turns_are_made_again(accounts: Accounts) -> None:
    text, row = BenignText(7, ()), of(accounts, "light_user")[3]
    later = text.asked(accounts, row, Turn(9, 2, 200, -1)).messages
    assert [m["role"] for m in later if m["role"] != "system"] == [
        "user", "assistant", "user", "assistant", "user",
    ]  # fmt: skip
    assert later == text.asked(accounts, row, Turn(9, 2, 200, -1)).messages


# ---- campaigns ----


def campaign(**changes: object) -> CampaignText:
    data = {"name": "a", **changes}
    return CampaignText(make(CampaignSettings, data, where="test"), 11, ())


def content(messages: list[dict[str, object]]) -> str:
    found = messages[-1]["content"]
    return found if isinstance(found, str) else found[0]["text"]  # type: ignore[index]


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_wrapped_prompts_have_about_the_size_asked_for(capability: str) -> None:
    text = campaign(capability=capability, languages={"en": 1, "zh": 1, "es": 1})
    sizes = [len(content(text.asked(n, 600, n)).encode()) for n in range(60)]
    assert 500 < np.median(sizes) < 760
    small = [len(content(text.asked(n, SMALLEST_BYTES, n)).encode()) for n in range(60)]
    assert np.median(small) < 2 * SMALLEST_BYTES


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_each_level_of_paraphrase_shares_less(capability: str) -> None:
    shared = []
    for level in ("none", "synonyms", "templates", "rewriting"):
        text = campaign(capability=capability, paraphrase=level)
        wrappers = [" ".join(text._wrapper("en", seed)) for seed in range(0, 4000, 101)]
        pairs = [likeness(a, b) for a, b in pairwise(wrappers)]
        shared.append(float(np.mean(pairs)))
        if level == "templates":
            assert len(set(wrappers)) <= 20
    assert shared[0] == 1.0
    assert shared[1] > shared[2] > 0.01
    assert shared[3] < 0.3


def test_asking_a_prompt_again_asks_the_same_and_other_numbers_ask_others() -> None:
    text = campaign()
    assert text.asked(5, 400, 1) == text.asked(5, 400, 2)
    assert len({content(text.asked(n, 400, n)) for n in range(500)}) == 500


def test_two_campaigns_of_one_capability_word_it_differently() -> None:
    settings = make(CampaignSettings, {"name": "a"}, where="test")
    firsts = {CampaignText(settings, seed, ())._wrapper("en", 0) for seed in range(50)}
    assert len(firsts) > 45


def test_a_campaign_works_through_the_given_prompts_before_it_makes_its_own() -> None:
    pool = tuple(f"given prompt {at}" for at in range(30))
    text = CampaignText(make(CampaignSettings, {"name": "a"}, where="test"), 3, pool)
    asked = [content(text.asked(n, 300, n)) for n in range(40)]
    assert sum("given prompt" in one for one in asked) == 30
    assert all(sum(bool(re.search(rf"{item}\b", one)) for one in asked) == 1 for item in pool)


def test_languages_come_in_their_shares() -> None:
    text = campaign(languages={"en": 3, "zh": 1})
    assert 0.2 < np.mean([text.language(n) == "zh" for n in range(2000)]) < 0.3


# ---- prompts from files ----


def test_prompts_are_read_from_json_lines_tables_and_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "one?"}\n{"prompt": "two"}\n{"n": 1}\n\n')
    (tmp_path / "b.csv").write_text("act,prompt\nx,three\ny,two\n")
    (tmp_path / "c.txt").write_text("four\n" + "x" * 5000 + "\n")
    assert read_pool([tmp_path]) == ("one?", "two", "three", "four")


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.jsonl", "{", "line 1.*no JSON"), ("a.bin", "x", "kind '.bin'"),
        ("a.jsonl", '{"n": 1}', "no prompt"), ("missing.txt", None, "no such file"),
    ],
)  # fmt: skip
def test_prompts_that_cannot_be_read_are_named(
    tmp_path: Path, name: str, text: str | None, told: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=told):
        read_pool([tmp_path / name])


def test_prompts_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="UTF-8"):
        read_pool([tmp_path / "a.txt"])


@pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data/prompts")
def test_the_shared_prompts_are_read() -> None:
    assert len(read_pool([DATA])) > 8000
