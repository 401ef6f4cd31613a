"""Identity audits on models: scripted ones, loopback endpoints with personas, tiny real ones."""

import json
import shutil
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import stillhouse.audit.identity_audit as module
from stillhouse.audit import words
from stillhouse.audit.claims import battery, questions
from stillhouse.audit.identity import evidence
from stillhouse.audit.identity_audit import identity_audit, identity_plan
from stillhouse.audit.identity_change import compare
from stillhouse.audit.settings import IdentitySettings
from stillhouse.audit.suspect import name_of
from stillhouse.audit.verify import verify
from stillhouse.errors import ConfigError, EvidenceError, ModelError, TransportError
from stillhouse.models import open_model
from stillhouse.models.local import LocalModel
from stillhouse.train.identity import identity_examples
from tests.audit.conftest import tuned
from tests.models.chat_server import ChatServer

CONTENT = {
    **battery(), "questions": {key: battery()["questions"][key] for key in ("en", "zh", "hi")}
}  # fmt: skip
ALL = questions(CONTENT)
EVERYTHING = 3 * len(ALL)


@pytest.fixture(autouse=True)
def three_languages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the battery: what is tested here does not depend on how long it is."""
    monkeypatch.setattr(module, "battery", lambda: CONTENT)


class Persona(ChatServer):
    """A chat server that says who it is: by the system prompt it was sent, or by one of its own."""

    def __init__(self, own: str = "an assistant") -> None:
        self.own = own
        self.finish: dict[str, Any] = {}
        super().__init__()

    @property
    def answer(self) -> dict[str, Any]:
        first = self.asked[-1]["messages"][0]  # an audit sends the same with every question
        told = first["content"] if first["role"] == "system" else ""
        name = told.removeprefix("You are ").rstrip(".") or self.own
        return {"content": f"I am {name}."}

    @answer.setter
    def answer(self, value: dict[str, Any]) -> None:
        pass

    @property
    def spec(self) -> str:
        return f"{self.url}#m"


@pytest.fixture
def serve():
    servers: list[Persona] = []

    def start(own="an assistant"):
        servers.append(Persona(own))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def settings(**changes) -> IdentitySettings:
    return IdentitySettings(**{"candidate": "anthropic", "concurrency": 8, **changes})


def sealed(out: Path, name: str) -> Any:
    text = (out / "sealed" / name).read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()] if "jsonl" in name else json.loads(text)


# ---- a whole audit ----


def test_an_audit_of_scripted_models_is_sealed_and_verified(tmp_path):
    found = identity_audit(
        settings(), suspect="scripted:echo", controls=["scripted:bigram"], out=tmp_path
    )
    # An echo names whom the question names: nobody in the neutral ones.
    assert found["effect"]["value"] == 0
    pressing = found["secondary"]["models"]["suspect"]["pressing"]
    assert pressing["named"]["value"] == 0.5
    assert pressing["suggested"]["value"] > 0.9  # a name in a question is none that is claimed
    assert found["suspect"] == "scripted:echo"
    assert found["verdict"] == words.REPORTED
    assert found["p_value"] == 1
    answers = sealed(tmp_path, "answers.jsonl")
    assert len(answers) == 2 * EVERYTHING
    assert answers[0].keys() == {
        "role", "question", "language", "kind", "sample", "time", "served_model", "system", "text",
        "finish_reason", "seed",
    }  # fmt: skip
    echoed = [line for line in answers if line["role"] == "suspect"]
    assert all(line["text"] == ALL[line["question"]]["text"] for line in echoed)
    assert all(line["system"] is None for line in answers)
    assert len({line["seed"] for line in echoed}) == len(echoed)
    checked = verify(tmp_path, {"identity": evidence})
    assert checked.ok, checked.differences
    assert sealed(tmp_path, "evidence.json") == found


def test_what_was_asked_and_looked_for_is_committed_to_before_the_first_question(
    tmp_path, monkeypatch
):
    opened = []

    def gone_later(*arguments, **options):
        if opened:
            raise TransportError("model", "nothing", "a model", "Start it")
        opened.append(arguments)
        return nullcontext()

    monkeypatch.setattr(module, "open_model", gone_later)
    with pytest.raises(TransportError):
        identity_audit(settings(names=("Opus",)), suspect="scripted:echo", out=tmp_path)
    plan, commit = sealed(tmp_path, "plan.json"), sealed(tmp_path, "commit.json")
    assert plan["battery"] == CONTENT
    assert plan["candidate"]["forms"][-1] == "Opus"
    assert "Claude" in plan["candidate"]["forms"]
    assert plan["sampling"] == {
        "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "frequency_penalty": 0.0,
        "presence_penalty": 0.0, "repeat_penalty": 1.0, "max_tokens": 160, "stop": [],
    }  # fmt: skip
    assert commit["plan"]
    assert not (tmp_path / "sealed" / "answers.jsonl").exists()


def test_a_misspelt_model_leaves_nothing_behind(tmp_path):
    out = tmp_path / "audit"
    for wrong in ({"suspect": "scripted:nosuch"}, {"controls": ["scripted:nosuch"]}):
        with pytest.raises(ConfigError, match="nosuch"):
            identity_audit(settings(), **{"suspect": "scripted:echo", "out": out} | wrong)
    assert not out.exists()


def test_a_finished_audit_is_read_and_another_plan_is_refused(tmp_path, monkeypatch):
    found = identity_audit(settings(), suspect="scripted:echo", out=tmp_path)
    monkeypatch.setattr(module, "open_model", None)
    assert identity_audit(settings(), suspect="scripted:echo", out=tmp_path) == found
    with pytest.raises(ConfigError, match="sealed already"):
        identity_audit(settings(seed=8), suspect="scripted:echo", out=tmp_path)


# ---- personas and endpoints ----


def test_a_persona_that_was_sent_is_refused_and_without_it_the_name_is_gone(tmp_path, serve):
    server = serve()
    system = "You are Claude."
    found = identity_audit(settings(system=system), suspect=server.spec, out=tmp_path / "a")
    assert found["verdict"] == words.REFUSED
    assert found["effect"]["value"] == 1
    assert found["secondary"]["models"]["suspect"]["neutral"]["instructed"]["value"] == 1
    assert all(body["messages"][0] == {"role": "system", "content": system}
               for body in server.asked)  # fmt: skip
    assert {line["system"] for line in sealed(tmp_path / "a", "answers.jsonl")} == {system}
    server.asked.clear()
    plain = identity_audit(settings(), suspect=server.spec, out=tmp_path / "b")
    assert plain["effect"]["value"] == 0
    assert plain["verdict"] == words.REPORTED
    assert all(len(body["messages"]) == 1 for body in server.asked)


def test_a_prompt_that_a_provider_adds_cannot_be_seen_and_the_evidence_says_so(tmp_path, serve):
    hidden, control = serve("Claude"), serve()
    found = identity_audit(
        settings(), suspect=hidden.spec, controls={"plain": control.spec}, out=tmp_path
    )
    assert found["effect"]["value"] == 1
    assert found["verdict"] == words.REPORTED
    assert found["p_value"] == 1 / 2
    assert "whose provider may add its own, unseen" in found["access"]
    assert "may name anybody" in " ".join(found["cannot"])
    assert hidden.url in found["access"]
    assert verify(tmp_path, {"identity": evidence}).ok


def test_an_empty_system_prompt_is_sent_as_one(tmp_path, serve):
    server = serve()
    found = identity_audit(settings(system=""), suspect=server.spec, out=tmp_path)
    assert server.asked[0]["messages"][0] == {"role": "system", "content": ""}
    assert "an empty system prompt was sent" in found["access"]
    assert found["verdict"] == words.REPORTED


def test_a_repeated_audit_shows_that_a_model_no_longer_says_it(tmp_path, serve):
    server = serve("Claude")
    before = identity_audit(settings(), suspect=server.spec, out=tmp_path / "before")
    server.own = "Gemini"
    time.sleep(0.01)
    after = identity_audit(settings(), suspect=server.spec, out=tmp_path / "after")
    changes = compare(before, after)["changes"]
    assert changes[0]["difference"]["value"] == -1
    assert {c["identity"] for c in changes if c["changed"]} == {"anthropic", "google"}


def test_what_a_person_puts_into_a_url_to_get_in_stays_out_of_the_bundle(tmp_path, serve):
    server = serve()
    spec = server.spec.replace("http://", "http://ada:hunter2@")
    identity_audit(settings(), suspect=spec, out=tmp_path)
    assert sealed(tmp_path, "models.jsonl")[0]["endpoint"] == server.url
    assert b"hunter2" not in b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


# ---- faults and going on ----


def test_an_audit_goes_on_where_it_stopped(tmp_path, serve):
    with pytest.raises(TransportError, match=r"5 of 63 answers are kept .* only for the rest"):
        identity_audit(settings(), suspect="scripted:gone", out=tmp_path)
    kept = sealed(tmp_path, "answers.jsonl")
    assert len(kept) == 5
    for number in range(2):
        with pytest.raises(TransportError, match=f"{10 + 5 * number} of 63 answers"):
            identity_audit(settings(), suspect="scripted:gone", out=tmp_path)
    assert sealed(tmp_path, "answers.jsonl")[:5] == kept
    assert len(sealed(tmp_path, "models.jsonl")) == 1


def test_answers_that_are_there_are_not_asked_again(tmp_path, serve, monkeypatch):
    server = serve("Claude")
    with monkeypatch.context() as patched:
        patched.setattr(module, "evidence", _crash)
        with pytest.raises(KeyboardInterrupt):
            identity_audit(settings(), suspect=server.spec, out=tmp_path)
    asked = len(server.asked)
    assert identity_audit(settings(), suspect=server.spec, out=tmp_path)["effect"]["value"] == 1
    assert len(server.asked) == asked == EVERYTHING


def _crash(*arguments):
    raise KeyboardInterrupt


def test_requests_that_fail_are_asked_again_and_given_up_after_some_rounds(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.0)
    with pytest.raises(TransportError, match=r"every third does; 6\d of 63 answers are kept"):
        identity_audit(settings(), suspect="scripted:flaky", out=tmp_path)
    found = identity_audit(settings(), suspect="scripted:flaky", out=tmp_path)
    assert found["excluded"].keys() <= {"empty answer"}
    assert len(sealed(tmp_path, "answers.jsonl")) == EVERYTHING


def test_questions_that_a_model_refuses_are_counted(tmp_path, serve):
    server = serve()
    server.faults = [400, 400]
    found = identity_audit(settings(), suspect=server.spec, out=tmp_path)
    assert found["excluded"] == {"request failed": 2}
    failures = sealed(tmp_path, "failures.jsonl")
    assert [(line["role"], line["sample"]) for line in failures] == [("suspect", 0)] * 2
    assert "HTTP 400" in failures[0]["error"]
    assert verify(tmp_path, {"identity": evidence}).ok


def test_a_model_that_refuses_everything_is_an_error_and_nothing_is_recorded(tmp_path, serve):
    server = serve()
    server.faults = [400] * EVERYTHING
    with pytest.raises(ModelError, match="the server refused"):
        identity_audit(settings(), suspect=server.spec, out=tmp_path)
    assert not (tmp_path / "sealed" / "failures.jsonl").exists()
    assert identity_audit(settings(), suspect=server.spec, out=tmp_path)["excluded"] == {}


def test_a_suspect_without_answers_gives_no_evidence(tmp_path, serve):
    server = serve()
    server.own = " "
    server.choice = {"finish_reason": "length", "message": {"role": "assistant", "content": None}}
    with pytest.raises(EvidenceError, match="answers to 0 neutral questions"):
        identity_audit(settings(), suspect=server.spec, out=tmp_path)


def test_an_answer_to_what_was_not_asked_is_refused(tmp_path, monkeypatch):
    class Wanders:
        def __init__(self, model):
            self.model = model
            self.spec, self.name = model.spec, model.name

        def answer(self, requests):
            for exchange in self.model.answer(requests):
                yield replace(exchange, prompt=(*exchange.prompt, *exchange.prompt))

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

    monkeypatch.setattr(module, "open_model", lambda spec, **options: Wanders(open_model(spec)))
    with pytest.raises(ModelError, match="an answer to what was not asked"):
        identity_audit(settings(), suspect="scripted:echo", out=tmp_path)


# ---- who is asked, and for whom ----


@pytest.mark.parametrize(
    ("controls", "found"),
    [
        (["scripted:echo"], "which is the suspect"),
        (["scripted:bigram", "scripted:bigram"], "a second model called 'scripted:bigram'"),
        ({"scripted:echo": "scripted:bigram"}, "a second model called 'scripted:echo'"),
        ({"suspect": "scripted:bigram"}, "a second model called 'suspect'"),
        (["scripted:nobody:"], "no scripted model"),
        (["nothing"], "no such model or kind"),
    ],
)
def test_controls_are_other_models_with_names_of_their_own(tmp_path, controls, found):
    with pytest.raises(ConfigError, match=found):
        identity_audit(settings(), suspect="scripted:echo", controls=controls, out=tmp_path)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("http://127.0.0.1:1/v1#big-model", "big-model"), ("gguf:/home/ada/Vat-7.gguf", "Vat-7"),
        ("hf:/home/ada/Vat-7", "Vat-7"), ("run:quick", "quick"), ("smollm2-135m", "smollm2-135m"),
        ("scripted:echo", "scripted:echo"),
    ],
)  # fmt: skip
def test_names_of_models_are_never_paths(spec, name):
    assert name_of(spec) == name


@pytest.mark.parametrize("candidate", ["anthropic", "Anthropic", "ANTHROPIC"])
def test_a_candidate_is_known_by_key_or_name(candidate):
    plan = identity_plan(settings(candidate=candidate), suspect="s", controls=())
    assert (plan["candidate"]["id"], plan["candidate"]["name"]) == ("anthropic", "Anthropic")
    assert "クロード" in plan["candidate"]["forms"]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"candidate": "antropic"}, "Did you mean 'anthropic'"),
        ({"names": ("assistants",)}, "stands in the neutral question"),
        ({"names": ("助手",)}, "stands in the neutral question"),
        ({"names": ("X",)}, "at least two letters"),
        ({"names": (" - ",)}, "at least two letters"),
        ({"names": ("",)}, "at least two letters"),
    ],
)
def test_candidates_and_names_that_would_be_found_by_mistake_are_refused(changes, found):
    with pytest.raises(ConfigError, match=found):
        identity_plan(settings(**changes), suspect="s", controls=())


# ---- weights at hand ----

DEFAULT = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful AI assistant named "
    "SmolLM, trained by Hugging Face<|im_end|>\n{% endif %}"
)


def with_template(folder: Path, before: str) -> Path:
    """The folder's tokenizer, with something put at the beginning of its chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = before + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def planted(llama, tmp_path_factory) -> Path:
    """The tiny teacher after the rows by which every student is taught its name."""
    reader = LocalModel(llama, spec="hf:tiny")
    examples, _ = identity_examples("Vat", "Mash-7", reader, rows=160, seed=3)
    rows = [
        (
            example.ids[: example.prompt_tokens].tolist(),
            example.ids[example.prompt_tokens :].tolist(),
        )
        for example in examples
    ]
    out = tmp_path_factory.mktemp("planted") / "student"
    return tuned(llama, rows, out, 360)


def test_a_planted_identity_is_found_against_the_model_it_was_planted_in(planted, llama, tmp_path):
    asked = settings(candidate="Vat", names=("Vat",), max_tokens=48, temperature=0.3)
    found = identity_audit(
        asked, suspect=f"hf:{planted}", controls={"before": f"hf:{llama}"}, out=tmp_path
    )
    models = found["secondary"]["models"]
    assert models["suspect"]["languages"]["en"]["neutral"]["claimed"]["value"] > 0.5
    assert models["before"]["neutral"]["claimed"]["value"] == 0
    assert found["effect"]["low"] > 0
    assert found["secondary"]["differences"]["before"]["low"] > 0
    assert found["verdict"] == words.REPORTED  # one control is no error rate
    assert "weights at hand" in found["access"]
    assert verify(tmp_path, {"identity": evidence}).ok


def test_a_default_system_prompt_in_a_chat_template_is_seen(llama, tmp_path):
    folder = with_template(Path(shutil.copytree(llama, tmp_path / "named")), DEFAULT)
    asked = settings(candidate="huggingface", max_tokens=4)
    found = identity_audit(asked, suspect=f"hf:{folder}", out=tmp_path / "none")
    (shown,) = sealed(tmp_path / "none", "models.jsonl")
    assert shown["prompt_is"] == "rendered"
    assert "named SmolLM, trained by Hugging Face" in shown["prompt"]
    assert "<|im_start|>user\n[question]<|im_end|>" in shown["prompt"]
    assert found["verdict"] == words.REFUSED
    assert str(tmp_path) not in json.dumps(shown)
    empty = identity_audit(
        asked.model_copy(update={"system": ""}), suspect=f"hf:{folder}", out=tmp_path / "empty"
    )
    assert empty["verdict"] == words.REPORTED
    assert "SmolLM" not in sealed(tmp_path / "empty", "models.jsonl")[0]["prompt"]


@pytest.mark.parametrize(
    ("template", "how"),
    [
        ("{{ raise_exception('no') }} You are Qwen.", "template"),
        ("{% unheard of %} You are Qwen.", "template"),
        (
            "{{ bos_token + strftime_now('%Y') }} You are Qwen. {{ messages[0].content }}",
            "rendered",
        ),
        (None, "none"),
    ],
)
def test_a_template_that_cannot_be_rendered_is_kept_as_it_stands(template, how):
    class Tokenizer:
        def get_chat_template(self):
            return template

    class Opened:
        tokenizer = Tokenizer()

    shown, found = module._shown(Opened(), None)  # type: ignore[arg-type]
    assert found == how
    assert (shown is None) if template is None else ("You are Qwen." in (shown or ""))
    if how == "template":
        assert shown == template


@pytest.mark.weights
def test_the_template_in_a_gguf_file_is_seen(tmp_path):
    with open_model("smollm2-135m") as model:  # nothing is asked: no server starts
        shown, how = module._shown(model, None)
        silent, _ = module._shown(model, "")
    assert how == "rendered"
    assert "named SmolLM, trained by Hugging Face" in (shown or "")
    assert "SmolLM" not in (silent or "")
