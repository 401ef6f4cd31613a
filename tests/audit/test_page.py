"""An audit's page: what cannot be concluded comes first, no figure is hidden, nothing escapes."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from stillhouse.audit import identity, radioactivity, twin, words
from stillhouse.audit.bundle import Bundle
from stillhouse.audit.page import write_page
from stillhouse.audit.page_charts import decoy_plot, difference_bars, innocent_counts
from stillhouse.audit.page_figures import Unread, often, plain
from stillhouse.audit.redact import redact
from stillhouse.audit.selection import draw_of
from stillhouse.audit.settings import TwinSettings
from stillhouse.audit.twin_audit import twin_audit
from stillhouse.errors import DataError, EvidenceError
from stillhouse.exchange import to_dict
from stillhouse.pages import figure
from stillhouse.watermark import Watermark
from tests.audit.identity_lines import always, lines_of, plan_with
from tests.audit.test_twin import PLAN, answer, leaning, raw
from tests.html_page import Page, claims_no_more_than_it_can, needs_nothing_but_itself
from tests.no_torch import NO_TORCH

EVIDENCE = {
    "twin": twin.evidence, "watermark": radioactivity.evidence, "identity": identity.evidence,
}  # fmt: skip
MARK = Watermark(key=bytes(range(32)), width=2, gamma=0.25, delta=4.0)
HOSTILE = "<script>alert('x')</script><b>&amp; \x1b[31m \u202e \"quoted\" {{ 7 * 7 }} ]]>"


def sealed(folder, plan, lines, reveal=None, before=()):
    """The evidence of a bundle sealed in the folder."""
    secrets = {k: v for k, v in (reveal or {}).items() if isinstance(v, str)}
    fixed = {name: lines[name] for name in before}
    bundle = Bundle.begin(folder, plan, before=fixed, secrets=secrets)
    for name in lines.keys() - fixed.keys():
        bundle.append(name, lines[name])
    found = EVIDENCE[plan["test"]](plan, lines, reveal or {})
    bundle.seal(found, reveal=reveal or {})
    return found


def twin_case(gaps=None, own=None, **changes):
    lines = raw(leaning(40, 1.5) if gaps is None else gaps, own)
    plan = PLAN | {"stillhouse": "0.1.0", "prefix_tokens": 0, "suspect": "Vat"} | changes
    plan["draw"] = draw_of(lines["candidates"], None)
    return plan, lines, {}, ("candidates", "pairs")


def watermark_case(share=0.6, answers=40, **changes):
    """A suspect that takes a green token with this chance, and any token otherwise."""
    rng, vocabulary = np.random.default_rng(5), 400
    said = []
    for _ in range(answers):
        ids = rng.integers(0, vocabulary, 2).tolist()
        while len(ids) < 30:
            green = np.flatnonzero(MARK.green_list(ids[-2:], vocabulary))
            ids.append(int(rng.choice(green) if rng.random() < share else rng.integers(vocabulary)))
        said.append(ids)
    plan = {
        "test": "watermark", "stillhouse": "0.1.0", "suspect": "Vat", "mode": "generation",
        "watermark": {**MARK.facts(), "tokenizer": "t1:words"}, "pairs": 50_000,
        "known_windows": False, "alpha": 0.01, "looks": 1, "decoys": {"count": 99, "seed": 7},
    } | changes  # fmt: skip
    lines = {
        "prompts": [{"number": n, "ids": []} for n in range(answers)],
        "answers": [
            {"number": n, "prompt": n, "ids": ids, "tokenizer": "t1:words"}
            for n, ids in enumerate(said)
        ],
    }
    return plan, lines, {"key": MARK.key.hex()}, ("prompts",)


def identity_case(controls=2, text="I am ChatGPT.", **options):
    says = {"suspect": always(text), "control 0": always("I am Gemini, not Claude.")}
    plan = plan_with(controls, **options)
    shown = {"suspect": "user: [question]"}
    return plan, lines_of(plan, says, prompt=shown), {}, ()


CASES = {"twin": twin_case, "watermark": watermark_case, "identity": identity_case}


def page_of(folder, case, more=None):
    """(the page, its evidence) of a case."""
    found = sealed(folder, *case) | (more or {})
    return write_page(folder, found).read_text("utf-8"), found


class Text(Page):
    """A page whose cells are words of their own."""

    def handle_starttag(self, tag, attrs):
        self.text += " " if tag in ("td", "th", "tr", "p", "li", "span", "small") else ""
        super().handle_starttag(tag, attrs)


def text_of(page):
    return " ".join(Text(page).text.split())


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page and its evidence for each test."""
    return {
        test: page_of(tmp_path_factory.mktemp(test), case()) for test, case in CASES.items()
    }  # fmt: skip


# ---- the order of things ----

HEADS = {
    "twin": ["Every paired difference"],
    "watermark": ["The true key among decoys"],
    "identity": ["Suspect and controls", "By language and kind of question", "What they answered"],
}


@pytest.mark.parametrize("test", CASES)
def test_headings_stand_in_their_order(pages, test):
    heads = re.findall(r"<h([12])[^>]*>(.*?)</h\1>", pages[test][0])
    assert [re.sub("<[^>]*>", "", text) for _, text in heads] == [
        "Audit of Vat", "What cannot be concluded from this", "What was found",
        "What was done, in plain words", *HEADS[test], "What was left out",
        "What was fixed beforehand", "How to check it", "How the accused answers",
        "Where it comes from",
    ]  # fmt: skip


@pytest.mark.parametrize("test", CASES)
def test_what_cannot_be_concluded_comes_before_any_number(pages, test):
    page, found = pages[test]
    text = text_of(page)
    head = text[: text.index("What cannot be concluded")]
    assert not re.search(r"\d", head), head
    assert found["verdict"].capitalize() in head
    limits = text[text.index("What cannot be concluded") : text.index("What was found")]
    for line in found["cannot"]:
        assert " ".join(line.split()) in limits


@pytest.mark.parametrize("test", CASES)
def test_the_page_needs_nothing_but_itself(pages, test):
    written = pages[test][0]
    needs_nothing_but_itself(written)
    assert not {"src", "href", "srcset", "action"} & {name for name, _ in Page(written).attributes}


@pytest.mark.parametrize("test", CASES)
def test_what_the_evidence_says_stands_there_with_its_figures(pages, test):
    page, found = pages[test]
    text = text_of(page)
    for line in found["says"]:
        assert " ".join(line.split()) in text
    assert f"n = {found['n']:,}" in text
    assert "95 % interval" in text
    assert "stillhouse audit verify" in text
    assert "contest/contest.yaml" in text


@pytest.mark.parametrize("test", CASES)
def test_every_p_value_has_its_n(pages, test):
    rows = re.findall(r"<tr><th>(.*?)</tr>", pages[test][0])
    given = [row for row in rows if re.match(r"(p,|p |Rank p|Teacher gate: p)", row)]
    assert given
    for row in given:
        assert re.search(r'data-h="n">[\d,]+<', row), row


# ---- verdicts and words ----

VERDICTS = {
    ("twin", words.EVIDENCE): twin_case,
    ("twin", words.NONE_FOUND): lambda: twin_case(leaning(40, 0.0)),
    ("twin", words.NOT_ENOUGH): lambda: twin_case(alpha=1e-15),
    ("twin", words.REFUSED): lambda: twin_case(
        leaning(40, 1.5), leaning(40, 2.0, 1), teacher="t", twins="drawn later"
    ),
    ("watermark", words.EVIDENCE): watermark_case,
    ("watermark", words.NONE_FOUND): lambda: watermark_case(0.0),
    ("identity", words.REPORTED): identity_case,
    ("identity", words.EVIDENCE): lambda: identity_case(19),
    ("identity", words.NONE_FOUND): lambda: identity_case(19, "I am an assistant."),
    ("identity", words.REFUSED): lambda: identity_case(2, system="You are ChatGPT."),
}


@pytest.mark.parametrize(("test", "verdict"), VERDICTS)
def test_every_verdict_opens_the_page_in_its_own_words(tmp_path, test, verdict):
    page, found = page_of(tmp_path, VERDICTS[test, verdict]())
    assert found["verdict"] == verdict
    text = text_of(page)
    head = text[: text.index("What cannot be concluded")]
    assert verdict.capitalize() in head
    others = [v for v in words.VERDICTS if v != verdict and v not in verdict]
    assert not [v for v in others if v.capitalize() in head]
    claims_no_more_than_it_can(page)
    if found["p_value"] is None:
        assert "None is given here" in text
        assert not re.search(r"Here p is ", text)
    else:
        assert re.search(r"Here p is \S.* \(n = [\d,]+ (pairs|controls)\)", text)


def test_a_suspect_that_answered_too_little_is_said_to_have(tmp_path):
    plan = plan_with(0)
    few = {"en-neutral-1", "en-neutral-2", "de-neutral-1"}
    lines = lines_of(plan, {"suspect": lambda key, question, sample: "Hm." if key in few else None})
    page, found = page_of(tmp_path, (plan, lines, {}, ()))
    assert found["verdict"] == words.NOT_ENOUGH
    assert "Not enough evidence: this model answered too few" in text_of(page)
    assert "Too few of the questions were answered." in text_of(page)


def test_a_refused_watermark_shows_its_p_value_as_none_to_be_read(tmp_path, pages):
    found = copy.deepcopy(pages["watermark"][1])
    found["secondary"]["refusal"] = "decoy keys do not behave"
    found |= {"verdict": words.REFUSED, "p_value": None}
    case = watermark_case()
    sealed(tmp_path, *case)
    text = text_of(write_page(tmp_path, found).read_text("utf-8"))
    assert "not to be read: the check above failed" in text
    assert "decoy keys do not behave" in text


@pytest.mark.parametrize("kind", ["escrowed", "of a store", "drawn later"])
@pytest.mark.parametrize("access", ["logprobs", "text"])
def test_each_kind_of_twin_and_access_is_explained_as_what_it_is(tmp_path, kind, access):
    plan, lines, reveal, before = twin_case()
    found = sealed(tmp_path, plan | {"twins": "of a store"}, lines, reveal, before)
    told = plan | {"twins": kind, "access": access, "prefix_tokens": 16}
    path = tmp_path / "sealed" / "plan.json"
    path.write_text(json.dumps(told))
    text = text_of(write_page(tmp_path, found).read_text("utf-8"))
    says = {
        "escrowed": "A secret fair coin said which", "of a store": "a twin that went to nobody",
        "drawn later": "as long as the teacher is unchanged",
    }  # fmt: skip
    assert [key for key, sentence in says.items() if sentence in text] == [kind]
    assert ("gives text only" in text) == (access == "text")
    assert ("word piece by word piece" in text) == (access == "logprobs")
    assert ("Teacher gate" in text) == (kind != "escrowed")
    assert ("Here it assumes, besides" in text) == (kind != "escrowed")


def test_reading_and_generation_are_explained_apart(tmp_path, pages):
    case = watermark_case()
    found = sealed(tmp_path, *case)
    assert "The suspect answered prompts." in text_of(pages["watermark"][0])
    plan = case[0] | {"mode": "reading"}
    served = [{"number": n["number"], "ids": n["ids"]} for n in case[1]["answers"]]
    read = [{"number": s["number"], "predicted": s["ids"], "tokenizer": "t1:words"} for s in served]
    lines = {"prompts": case[1]["prompts"], "served": served, "readings": read}
    found = sealed(tmp_path / "read", plan, lines, case[2], ("prompts", "served"))
    text = text_of(write_page(tmp_path / "read", found).read_text("utf-8"))
    assert "The suspect read text that had been served under the key" in text
    assert "stood earlier in the text just read" in text


# ---- what is plotted ----


def test_every_pair_is_a_bar_on_its_side_of_zero(tmp_path):
    gaps = [*leaning(60, 0.7), 0.0]
    page, found = page_of(tmp_path, twin_case(gaps))
    bars = re.findall(r'<rect class="bar (\w+)" x="(\d+)" y="([\d.]+)"[^>]*><title>(.*?)<', page)
    assert len(bars) == 61 == len(found["differences"])
    up, down = sum(g > 0 for g in gaps), sum(g < 0 for g in gaps)
    assert [side for side, *_ in bars] == ["twin"] * down + ["none"] + ["served"] * up
    assert [int(x) for _, x, *_ in bars] == list(range(61))
    assert all(float(y) < 50 for side, _, y, _ in bars if side == "served")
    for name, gap in found["differences"].items():
        assert any(name in title for *_, title in bars)
        assert any(f"{abs(gap):.3f}" in title or f"{abs(gap):.2f}" in title for *_, title in bars)
    text = text_of(page)
    assert f"{down} lean to the twin" in text
    assert "1 to neither" in text
    assert f"{up} lean to the served answer" in text
    assert f"this suspect: {up}" in text


def test_bars_compare_sides_and_the_longest_are_cut_and_counted(tmp_path):
    values = {str(n): value for n, value in enumerate([*np.linspace(-1, 1, 40), 9.0, -7.0])}
    plot = difference_bars(values, "nats a token")
    assert (plot["cut"], plot["furthest"]) == (2, 9.0)
    assert max(bar["height"] for bar in plot["bars"]) == 50
    heights = {bar["says"].split(":")[0]: bar["height"] for bar in plot["bars"]}
    assert heights["0"] == pytest.approx(50 / plot["reach"], abs=1e-3)
    assert difference_bars({"a": 0.0}, "")["zeros"] == 1
    gaps = [*leaning(40, 0.0), 90.0]
    text = text_of(page_of(tmp_path, twin_case(gaps))[0])
    assert (
        "1 bar reaches beyond the frame and is cut at it; the furthest is 90.00 away from zero"
        in text
    )


@pytest.mark.parametrize("n", [20, 121, 2000])
def test_the_band_of_innocents_is_the_exact_binomials(n):
    plot = innocent_counts(n, n)
    assert plot["low"] == binom.ppf(0.025, n, 0.5)
    assert plot["high"] == binom.ppf(0.975, n, 0.5)
    assert (plot["at"], plot["inside"]) == (100, False)
    assert innocent_counts(n // 2, n)["inside"]


def test_every_decoy_is_in_a_column_and_the_true_key_is_marked(pages):
    page, found = pages["watermark"]
    counts = re.findall(r'<rect class="column"[^>]*><title>(\d+) decoy keys', page)
    assert sum(map(int, counts)) == found["secondary"]["decoys"]["count"] == 99
    share = found["statistic"]["value"] / found["n"]
    assert f"true key: {100 * share:.2f} %" in text_of(page)
    plot = decoy_plot(300, [250] * 99, 1000, 0.25)
    assert plot["least"] == plot["most"] == 0.25
    assert plot["gamma_at"] < plot["at"]
    assert sum(bar["count"] for bar in plot["bars"]) == 99


def test_all_answers_stand_there_beside_what_was_read_in_them(pages):
    page, found = pages["identity"]
    plan = plan_with(2)
    asked = sum(
        len(q["neutral"]) + len(q["pressing"]) for q in plan["battery"]["questions"].values()
    )
    assert page.count("I am ChatGPT.</p>") == 3 * asked  # the suspect's
    assert page.count("I am Gemini, not Claude.</p>") == 3 * asked
    text = text_of(page)
    assert "answer 1 · names OpenAI" in text
    assert "mentions Anthropic, negated or asked" in text
    assert "names OpenAI, which the question named" in text
    for question in plan["battery"]["questions"]["ar"]["neutral"]:
        assert question in Page(page).text
    assert "user: [question]" in text
    assert found["secondary"]["models"]["control 0"]["neutral"]["claimed"]["value"] == 0


@pytest.mark.parametrize("controls", [3, 6])
def test_languages_stand_beside_the_controls_or_their_range(tmp_path, controls):
    page, _ = page_of(tmp_path, identity_case(controls))
    assert page.count("Every control, ") == (4 if controls > 4 else 0)
    assert ("0 % to 0 %" in page) == (controls > 4)
    for name in (f"control {n}" for n in range(controls)):
        assert name in text_of(page)


# ---- no figure is hidden ----


@pytest.mark.parametrize("test", CASES)
def test_figures_nobody_laid_out_are_a_plain_table(tmp_path, pages, test):
    case = CASES[test]()
    found = sealed(tmp_path, *case)
    assert "Further figures" not in text_of(pages[test][0])  # all that there are have a place
    found["secondary"] |= {
        "later": {"p_value": 0.0321, "n": 17, "by": [1, 2.5, None]}, "odd": [{"a": -0.125}],
        "share": {"value": 0.5, "low": 0.25, "high": 0.75, "n": 8, "method": "by hand"},
    }  # fmt: skip
    found["new"] = True
    found["family"] = {"tests": 3, "holm_p_value": 0.0456, "kind": "declared"}
    deep = {"twin": "mean_difference", "watermark": "decoys", "identity": "rank"}[test]
    found["secondary"][deep]["deeper"] = 0.0789
    text = text_of(write_page(tmp_path, found).read_text("utf-8"))
    for shown in (
        "later, p value", "0.0321", "later, by", "1, 2.5, none", "odd, 1, a", "−0.125", "0.5",
        "0.25 to 0.75", "by hand", "new", "yes", "0.0456", "declared",
    ):  # fmt: skip
        assert shown in text, shown
    if test != "twin":  # an estimate is one figure, whatever stands in it
        assert "0.0789" in text


@pytest.mark.parametrize("test", CASES)
def test_missing_figures_leave_a_page(tmp_path, test):
    case = CASES[test]()
    found = sealed(tmp_path, *case)
    for key in [*found["secondary"], None]:
        kept = {k: v for k, v in found["secondary"].items() if key is not None and k != key}
        page = write_page(tmp_path, found | {"secondary": kept}).read_text("utf-8")
        assert Page(page).open == []
        assert "What was found" in page
    if test == "twin":
        bare = {k: v for k, v in found.items() if k != "differences"}
        text = text_of(write_page(tmp_path, bare).read_text("utf-8"))
        assert "The evidence holds no differences" in text


def test_unread_figures_are_those_that_nobody_took():
    unread = Unread({"a": {"b": 1, "c": {}}, "d": {"e": None}, "f": [1, 2]})
    assert unread("a", "b") == 1
    assert unread("d", "e", "g") is None  # asked below nothing: nothing was there to be shown
    assert unread.peek("f") == [1, 2]
    assert unread.names("a") == ["b", "c"]
    assert unread.left() == [(("a", "c"), {}), (("f",), [1, 2])]


def test_exclusions_are_counted_with_their_reasons(tmp_path):
    plan, lines, reveal, before = twin_case()
    lines["pairs"][3]["twin"] = to_dict(answer(3, "served", 1))
    text = text_of(page_of(tmp_path, (plan, lines, reveal, before))[0])
    assert "served answer and twin are the same 1" in text
    assert "1 in all; the test rests on n = 39 pairs" in text


def test_plan_commitments_and_roots_stand_on_the_page(tmp_path):
    case = twin_case(where=["account=a1"], spent=["p1:x", "p1:y"])
    page, _ = page_of(tmp_path / "my audit", case)
    commit, seal = (
        json.loads((tmp_path / "my audit" / "sealed" / f"{name}.json").read_text())
        for name in ("commit", "seal")
    )
    text = text_of(page)
    for shown in (
        commit["plan"], commit["before"]["pairs"]["merkle_root"], seal["root"],
        commit["time"][:16].replace("T", " "), "account=a1", "Prompts spent in earlier audits 2",
        "stillhouse audit verify 'my audit'", "0.01",
    ):  # fmt: skip
        assert shown in text, shown
    assert str(tmp_path) not in page


def test_probabilities_are_never_written_as_zero():
    written = [figure(p, "chance") for p in (1.0, 0.05, 0.00123, 4.56e-7, 1e-310)]
    assert written == ["1", "0.05", "0.00123", "4.6 × 10⁻⁷", "below 10⁻³⁰⁰"]


def test_frequencies_and_settings_in_words():
    assert often(0.6) == "more than half"
    assert often(0.25) == "about 1 in 4"
    assert often(0.00123) == "about 1 in 810"
    assert often(1e-12) == "fewer than 1 in a billion"
    assert plain(list(range(15))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 3 more"
    assert plain({"a": None, "b": -1234567}) == "a: none; b: −1,234,567"
    assert plain("") == "(empty)"


# ---- what others wrote ----


@pytest.mark.parametrize("test", CASES)
def test_hostile_names_are_escaped(tmp_path, test):
    case = CASES[test]()
    changed = {"suspect": HOSTILE}
    if test == "twin":
        changed["where"] = [f"account={HOSTILE}"]
    page, _ = page_of(tmp_path, (case[0] | changed, *case[1:]))
    assert "<script" not in page
    assert "</script><b>&amp;" not in page
    assert "&lt;script&gt;alert" in page
    assert "\x1b" not in page
    assert "{{ 7 * 7 }}" in page
    assert Page(page).open == []


def test_hostile_answers_controls_and_reasons_are_escaped(tmp_path):
    plan = plan_with(0) | {"controls": [HOSTILE]}
    lines = lines_of(
        plan, {"suspect": always(HOSTILE + " ChatGPT"), HOSTILE: always(HOSTILE)},
        prompt={"suspect": HOSTILE}, served=HOSTILE,
    )  # fmt: skip
    found = sealed(tmp_path, plan, lines)
    found["excluded"] = {HOSTILE: 1}
    found["cannot"] = [HOSTILE]
    found["secondary"][HOSTILE] = HOSTILE
    page = write_page(tmp_path, found).read_text("utf-8")
    assert "<script" not in page
    assert "\x1b" not in page
    assert "␛[31m" in page
    assert Page(page).open == []
    assert not [v for name, v in Page(page).attributes if name in ("src", "href", "onload")]


def test_withheld_lines_are_said_to_be(tmp_path):
    mark, asked = watermark_case(), identity_case()
    for case, name in ((mark, "mark"), (asked, "asked")):
        found = sealed(tmp_path / name, *case)
        count = redact(
            tmp_path / name, tmp_path / f"{name}-copy",
            lambda file, line: file == "answers" and line.get("role", "suspect") == "suspect",
        )  # fmt: skip
        assert count
        page = write_page(tmp_path / f"{name}-copy", found).read_text("utf-8")
        assert "withheld from this copy" in text_of(page)
        assert "I am ChatGPT.</p>" not in page
    assert '<rect class="column"' not in (tmp_path / "mark-copy" / "report.html").read_text()
    secret = tmp_path / "secret"
    redact(tmp_path / "mark", secret, lambda file, line: False, secrets=True)
    page = write_page(secret, sealed(tmp_path / "again", *mark)).read_text("utf-8")
    assert "the key are withheld from this copy" in text_of(page)
    assert mark[2]["key"] not in page


# ---- whole audits ----


def test_the_page_of_an_escrowed_audit_on_a_scripted_model(escrowed: Path, tmp_path: Path):
    found = twin_audit(
        TwinSettings(), suspects=("scripted:bigram", "scripted:slow"),
        exchanges=escrowed / "served", twins=escrowed / "escrow", out=tmp_path,
    )  # fmt: skip
    for number, one in enumerate(found, start=1):
        folder = tmp_path / str(number)
        path = write_page(folder, one)
        assert path == folder / "report.html"
        assert sorted(p.name for p in folder.iterdir()) == ["contest", "report.html", "sealed"]
        text = text_of(path.read_text("utf-8"))
        assert "every pair fits its hash" in text
        assert f"{one['family']['holm_p_value']:.3g}" in text
        assert "Holm, 2 tests" in text


# ---- refusals ----


def test_a_folder_without_a_seal_has_no_page(tmp_path):
    plan, lines, _, _ = twin_case()
    found = sealed(tmp_path, plan, lines)
    (tmp_path / "sealed" / "seal.json").unlink()
    with pytest.raises(DataError, match=r"seal\.json"):
        write_page(tmp_path, found)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("change", [{"test": "sign"}, {"test": "identity"}])
def test_evidence_of_another_test_has_no_page(tmp_path, change):
    plan, lines, _, _ = twin_case()
    found = sealed(tmp_path, plan, lines)
    with pytest.raises(EvidenceError, match="one of twin, watermark, identity"):
        write_page(tmp_path, found | change)


def test_the_page_is_written_without_torch(tmp_path):
    plan, lines, reveal, before = watermark_case()
    sealed(tmp_path, plan, lines, reveal, before)
    code = (
        f"{NO_TORCH}"
        "import json\n"
        "from pathlib import Path\n"
        "from stillhouse.audit.page import write_page\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "read = json.loads((folder / 'sealed' / 'evidence.json').read_text())\n"
        "print(write_page(folder, read).name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "report.html"
