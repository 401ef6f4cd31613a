"""A model's name leads to the model by what is asked of it, or to an error that helps."""

import subprocess
import sys
from pathlib import Path

import pytest

from stillhouse.errors import CapabilityError, ConfigError, ModelError
from stillhouse.models import Need, open_model, parse_spec
from stillhouse.models.endpoint import EndpointModel
from stillhouse.models.llamacpp import LlamaCppModel
from stillhouse.models.scripted import ScriptedModel
from stillhouse.models.specs import Spec


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("smollm2-135m", Spec("smollm2-135m", "weights", "smollm2-135m")),
        ("gguf:a/b.gguf", Spec("gguf:a/b.gguf", "gguf", "a/b.gguf")),
        ("gguf:C:/b.gguf", Spec("gguf:C:/b.gguf", "gguf", "C:/b.gguf")),
        ("hf:org/name", Spec("hf:org/name", "hf", "org/name")),
        ("run:quickstart", Spec("run:quickstart", "run", "quickstart")),
        ("scripted:echo", Spec("scripted:echo", "scripted", "echo")),
        (
            "http://localhost:8000/v1#a/b:c",
            Spec("http://localhost:8000/v1#a/b:c", "endpoint", "http://localhost:8000/v1", "a/b:c"),
        ),
    ],
)
def test_a_spec_has_parts(text: str, spec: Spec) -> None:
    assert parse_spec(text) == spec


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("smolm2-135m", "Did you mean 'smollm2-135m'?"),
        ("ggfu:model.gguf", "Did you mean 'gguf:'?"),
        ("scriptd:echo", "Did you mean 'scripted:'?"),
        ("htp://host/v1#m", "Did you mean 'http://'?"),
        ("gpt-4", "Known: "),
        ("", "Known: "),
        ("gguf:", "nothing after 'gguf:'"),
        ("http://host/v1", "Add '#' and the model's name"),
        ("http:///v1#m", "a URL without a host"),
        ("http://[::1/v1#m", "no URL"),
        ("http://host:99999/v1#m", "no URL"),
    ],
)
def test_an_unknown_spec_names_the_nearest(text: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_spec(text)
    assert hint in str(caught.value)
    assert caught.value.exit_code == 2


def test_each_kind_opens_as_what_it_is() -> None:
    with open_model("scripted:echo") as model:
        assert isinstance(model, ScriptedModel)
    with open_model("http://127.0.0.1:9/v1#m", slots=3, attempts=1) as model:
        assert isinstance(model, EndpointModel)
        assert (model.base_url, model.model, model.name) == ("http://127.0.0.1:9/v1", "m", "m")


@pytest.mark.weights
def test_gguf_weights_answer_through_llama_cpp(gguf: Path) -> None:
    for spec in ("smollm2-135m", f"gguf:{gguf}"):
        with open_model(spec, need=Need(text=True, top_logprobs=20), slots=2) as model:
            assert isinstance(model, LlamaCppModel)
            assert model.path == gguf
            assert str(gguf.parent) not in model.name


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.parametrize(
    "need", [Need(scoring=True), Need(full_logits=True), Need(text=True, top_logprobs=21)]
)
def test_gguf_weights_do_what_llama_cpp_cannot_through_torch(need: Need) -> None:
    pytest.importorskip("torch")
    with open_model("smollm2-135m", need=need) as model:
        assert type(model).__name__ == "LocalModel"
        assert model.name == "smollm2-135m"


@pytest.mark.weights
def test_a_forced_engine_that_cannot_is_an_error_not_another_engine() -> None:
    with pytest.raises(CapabilityError, match="scoring of given text"):
        open_model("smollm2-135m", need=Need(scoring=True), engine="llamacpp")


def test_what_a_model_cannot_is_said_at_the_door() -> None:
    with pytest.raises(CapabilityError, match=r"full logits.*what it can: text"):
        open_model("scripted:echo", need=Need(full_logits=True))


@pytest.mark.parametrize(
    ("spec", "engine", "words"),
    [
        ("scripted:echo", "local", "an engine for GGUF weights only"),
        ("run:x", "llamacpp", "engine 'auto' or 'local'"),
        ("scripted:echo", "lama", "one of auto, llamacpp, local"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused(spec: str, engine: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_model(spec, engine=engine)  # type: ignore[arg-type]
    assert words in str(caught.value)


@pytest.mark.parametrize("spec", ["scripted:echo", "http://127.0.0.1:9/v1#some"])
def test_a_precision_is_refused_where_torch_does_not_compute(spec: str) -> None:
    with pytest.raises(ConfigError, match="precision 'bfloat16'"):
        open_model(spec, precision="bfloat16")


def test_a_missing_file_or_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no file .*none\.gguf"):
        open_model(f"gguf:{tmp_path}/none.gguf")
    with pytest.raises(ConfigError, match="Run a recipe first"):
        open_model("run:quickstart", runs=tmp_path)
    student = tmp_path / "quickstart" / "student"
    student.mkdir(parents=True)
    (student / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="Did you mean 'quickstart'"):
        open_model("run:quikstart", runs=tmp_path)


def test_without_torch_the_extra_is_named_and_the_rest_works(tmp_path: Path) -> None:
    student = tmp_path / "r" / "student"
    student.mkdir(parents=True)
    (student / "config.json").write_text("{}")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from stillhouse.errors import ModelError\n"
        "from stillhouse.models import open_model\n"
        "open_model('scripted:bigram').close()\n"
        "try:\n"
        f"    open_model('run:r', runs=Path({str(tmp_path)!r}))\n"
        "except ModelError as error:\n"
        "    sys.stdout.write(str(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'stillhouse[train]'" in done.stdout
    assert "'torch'" in done.stdout


def test_the_door_opens_without_heavy_imports() -> None:
    code = (
        "import sys; import stillhouse.models\n"
        "sys.stdout.write(','.join(sorted({'torch','openai','httpx','transformers','xllamacpp',"
        "'pyarrow','scipy'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
