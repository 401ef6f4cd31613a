"""First weights: what is kept is what was measured, and healing brings the cut closer."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from stillhouse.config import StudentSettings
from stillhouse.errors import ConfigError, DataError
from stillhouse.exchange import Exchange
from stillhouse.models.local import LocalModel
from stillhouse.train import init
from stillhouse.train.init import from_checkpoint, from_scratch, prune
from stillhouse.train.layers import layers_of
from stillhouse.train.narrow import keep_neurons
from stillhouse.train.prepare import save_folder
from stillhouse.train.targets import Example, make_examples


@pytest.fixture(scope="module")
def examples(exchanges: list[Exchange], teacher: LocalModel) -> list[Example]:
    return make_examples(exchanges, teacher, kind="soft")[0]


def test_a_cut_that_keeps_every_layer_is_the_teacher(teacher: LocalModel, examples: list[Example]):
    student, record = prune(teacher.network, examples, StudentSettings(layers=6, heal=False))
    ids = torch.tensor(examples[0].ids)[None].long()
    with torch.no_grad():
        assert torch.equal(student(ids).logits, teacher.network(ids).logits)
    assert record.kept_layers == [0, 1, 2, 3, 4, 5]
    assert record.kl_nats["cut"] == pytest.approx(0.0, abs=1e-4)


def test_influence_is_one_less_the_cosine_around_a_layer(
    teacher: LocalModel, examples: list[Example]
):
    _, record = prune(teacher.network, examples[:1], StudentSettings(layers=3, heal=False))
    one = examples[0]
    with torch.no_grad():
        states = teacher.network(
            torch.tensor(one.ids)[None].long(), output_hidden_states=True
        ).hidden_states
    rows = slice(one.prompt_tokens - 1, len(one.ids) - 1)
    cosine = torch.nn.functional.cosine_similarity(states[2][0, rows], states[3][0, rows], dim=-1)
    assert record.influence[2] == pytest.approx(float((1 - cosine).mean()), abs=2e-4)
    least = sorted(range(6), key=lambda i: record.influence[i])[:3]
    assert record.kept_layers == [i for i in range(6) if i not in least]


def test_greedy_removal_goes_on_when_few_removals_are_tried_again(
    teacher: LocalModel, examples: list[Example], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(init, "_CANDIDATES", 1)
    one = StudentSettings(layers=1, choose="greedy", heal=False, measure_tokens=200)
    _, record = prune(teacher.network, examples, one)
    assert record.kept_layers == [0]
    assert sorted(int(r["layer"]) for r in record.removed) == [1, 2, 3, 4, 5]


def test_greedy_removal_is_no_worse_than_every_other_single_removal(
    teacher: LocalModel, examples: list[Example]
):
    greedy = StudentSettings(layers=5, choose="greedy", heal=False, measure_tokens=200)
    _, record = prune(teacher.network, examples, greedy)
    (removed,) = record.removed
    for other in range(1, 6):
        keep = tuple(i for i in range(6) if i != other)
        given = StudentSettings(keep=keep, heal=False, measure_tokens=200)
        _, rival = prune(teacher.network, examples, given)
        if other == removed["layer"]:
            assert list(keep) == record.kept_layers
            found = rival.kl_nats["cut"]
    assert removed["kl_nats"] > 0
    assert found > 0


def test_healing_brings_the_student_closer_without_a_gradient_step(
    teacher: LocalModel, examples: list[Example]
):
    healed, record = prune(teacher.network, examples, StudentSettings(keep=(0, 1, 3, 5)))
    assert record.healed
    assert record.kl_nats["healed"] < 0.95 * record.kl_nats["cut"]
    assert all(p.grad is None for p in healed.parameters())
    changed = {
        name
        for name, value in healed.state_dict().items()
        if "layers" in name
        and not torch.equal(
            value,
            teacher.network.state_dict()[_teacher_name(name, record.kept_layers)],
        )
    }
    # before the first gap there is nothing to correct
    assert changed == {f"model.layers.{i}.mlp.down_proj.weight" for i in (1, 2, 3)}


def test_narrowing_keeps_the_layers_and_cuts_every_mlp_to_its_width(
    teacher: LocalModel, examples: list[Example], tmp_path: Path
):
    network, record = prune(teacher.network, examples, StudentSettings(intermediate_size=72))
    assert record.kept_layers == [0, 1, 2, 3, 4, 5]
    assert record.intermediate_size == network.config.intermediate_size == 72
    assert {layer.mlp.down_proj.weight.shape[1] for layer in layers_of(network)} == {72}
    assert list(record.kl_nats) == ["narrowed"]
    save_folder(network, teacher.tokenizer, tmp_path / "narrow")
    again, _ = from_checkpoint(tmp_path / "narrow")
    ids = torch.tensor(examples[0].ids)[None].long()
    with torch.no_grad():
        assert torch.equal(again.eval()(ids).logits, network(ids).logits)


def test_neurons_are_chosen_better_than_by_the_size_of_their_weights(
    teacher: LocalModel, examples: list[Example]
):
    _, record = prune(teacher.network, examples, StudentSettings(intermediate_size=64))
    largest = copy.deepcopy(teacher.network)
    for layer in layers_of(largest):
        norms = layer.mlp.down_proj.weight.detach().norm(dim=0)
        keep_neurons(layer.mlp, norms.topk(64).indices.sort().values)
    ids = [torch.tensor(e.ids)[None].long() for e in examples[-4:]]
    with torch.no_grad():
        wanted = [teacher.network(i).logits.log_softmax(-1) for i in ids]
        given = [largest(i).logits.log_softmax(-1) for i in ids]
    kls = [float((w.exp() * (w - g)).sum(-1).mean()) for w, g in zip(wanted, given, strict=True)]
    assert record.kl_nats["narrowed"] < 0.9 * sum(kls) / len(kls)


def test_impossible_widths_are_refused(teacher: LocalModel, examples: list[Example]):
    with pytest.raises(ConfigError, match=r"student\.intermediate_size"):
        prune(teacher.network, examples, StudentSettings(intermediate_size=10_000))


def _teacher_name(name: str, kept: list[int]) -> str:
    parts = name.split(".")
    return ".".join([*parts[:2], str(kept[int(parts[2])]), *parts[3:]])


def test_pruning_leaves_the_teacher_as_it_was(teacher: LocalModel, examples: list[Example]):
    before = {n: v.clone() for n, v in teacher.network.state_dict().items()}
    prune(teacher.network, examples, StudentSettings(layers=4, choose="greedy"))
    assert all(torch.equal(v, before[n]) for n, v in teacher.network.state_dict().items())
    assert len(layers_of(teacher.network)) == teacher.network.config.num_hidden_layers == 6


def test_impossible_layers_are_refused(teacher: LocalModel, examples: list[Example]):
    for settings in (
        StudentSettings(layers=7),
        StudentSettings(keep=(0, 9)),
        StudentSettings(keep=(1, 0)),
    ):
        with pytest.raises(ConfigError, match=r"student\.(layers|keep)"):
            prune(teacher.network, examples, settings)
    with pytest.raises(DataError, match=r"no `model\.layers`"):
        layers_of(torch.nn.Linear(2, 2))


def test_from_scratch_takes_the_sizes_given_and_the_seed(teacher: LocalModel):
    settings = StudentSettings(init="scratch", layers=2, hidden_size=96)
    network, record = from_scratch(teacher.network, settings, seed=3)
    assert record.init == "scratch"
    assert network.config.num_hidden_layers == 2
    assert network.config.hidden_size == 96
    assert network.config.intermediate_size == 192
    assert network.config.num_attention_heads == 6
    again, _ = from_scratch(teacher.network, settings, seed=3)
    other, _ = from_scratch(teacher.network, settings, seed=4)
    weight = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(network.state_dict()[weight], again.state_dict()[weight])
    assert not torch.equal(network.state_dict()[weight], other.state_dict()[weight])
    with pytest.raises(ConfigError, match="multiple of 48"):
        from_scratch(teacher.network, StudentSettings(init="scratch", hidden_size=50), seed=3)


def test_a_checkpoint_is_read_in_float32_and_a_missing_one_refused(
    teacher_folder: Path, tmp_path: Path
):
    network, record = from_checkpoint(teacher_folder)
    assert record.init == "checkpoint"
    assert next(network.parameters()).dtype == torch.float32
    for folder in (None, tmp_path):
        with pytest.raises(ConfigError, match="checkpoint"):
            from_checkpoint(folder)
