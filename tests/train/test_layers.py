"""Attention in float32 inside bfloat16 training: what it computes, and that no trace is saved."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from stillhouse.models.local import LocalModel
from stillhouse.train.layers import attend_in_float32, precision
from stillhouse.train.prepare import save_folder


def test_attention_gets_float32_and_gives_the_same(
    teacher: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.arange(3, 40)[None]
    plain, changed = copy.deepcopy(teacher.network), copy.deepcopy(teacher.network)
    attend_in_float32(changed)
    with torch.no_grad():
        assert torch.allclose(plain(ids).logits, changed(ids).logits, atol=1e-5)
    seen: list[tuple[torch.dtype, bool]] = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, *rest: object, **more: object) -> torch.Tensor:
        seen.append((query.dtype, torch.is_autocast_enabled("cpu")))
        return kernel(query, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    with torch.no_grad(), precision(torch.bfloat16):
        changed(ids)
        assert set(seen) == {(torch.float32, False)}
        seen.clear()
        plain(ids)
        assert {casts for _, casts in seen} == {True}  # there the kernel is given bfloat16


def test_a_saved_student_is_an_ordinary_one(teacher: LocalModel, tmp_path: Path) -> None:
    network = copy.deepcopy(teacher.network)
    attend_in_float32(network)
    save_folder(network, teacher.tokenizer, tmp_path / "student")
    assert "float32" not in (tmp_path / "student" / "config.json").read_text().replace(
        '"dtype": "float32"', ""
    )
