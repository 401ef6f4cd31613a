"""Prompts from files, and what is no prompt."""

from __future__ import annotations

import json
import re
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.errors import DataError
from stillhouse.exchange import (
    Exchange,
    Message,
    Part,
    Response,
    Sampling,
    Tool,
    ToolCall,
    from_dict,
    message,
    to_dict,
)
from stillhouse.messages import Unfit, prompt_of
from stillhouse.prompts import prompt_files, read_prompts


def lines(path: Path, *records: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(r + "\n" if isinstance(r, str) else json.dumps(r) + "\n" for r in records)
    )
    return path


def texts(path: Path | str, **options: Any) -> list[str]:
    return [prompt.messages[-1].text for prompt in read_prompts([path], **options).prompts]


def kept_rejects(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- kinds of files ----


def test_jsonl_gives_ids_labels_and_sources(tmp_path: Path) -> None:
    file = lines(
        tmp_path / "p.jsonl",
        {"id": "one", "prompt": "Say one.", "task": "count", "domain": "numbers", "level": 3},
        "",
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
            ]
        },
    )
    one, two = read_prompts([file]).prompts
    assert one.id == "one"
    assert one.messages == (message("user", "Say one."),)
    assert one.labels == {"prompt_id": "one", "task": "count", "domain": "numbers", "level": "3"}
    assert one.source == f"{file}:1"
    assert two.messages == (message("system", "Be brief."), message("user", "Hi"))
    assert re.fullmatch(r"p1:[0-9a-f]{16}", two.id)
    assert two.labels == {"prompt_id": two.id}
    assert two.source == f"{file}:3"


def test_an_id_made_from_content_depends_on_content_only(tmp_path: Path) -> None:
    a = lines(tmp_path / "a.jsonl", {"prompt": "Hello"}, {"prompt": "Bye"})
    b = lines(tmp_path / "b.jsonl", {"prompt": "Bye", "task": "x"})
    first, second = read_prompts([a]).prompts
    (again,) = read_prompts([b]).prompts
    assert second.id == again.id != first.id


def test_text_gives_a_prompt_a_line(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_bytes(
        '\ufeffFirst line\r\n\r\n  Zweite Zeile: ä\u2028same line \n\n{"prompt": 1}'.encode()
    )
    assert texts(file) == ["First line", "Zweite Zeile: ä\u2028same line", '{"prompt": 1}']
    assert [p.source.rpartition(":")[2] for p in read_prompts([file]).prompts] == ["1", "3", "5"]


def test_json_lists_are_read(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_text(json.dumps([{"prompt": "a"}, {"prompt": "b"}]))
    assert texts(file) == ["a", "b"]
    file.write_text('{"prompt": "alone"}')
    assert texts(file) == ["alone"]
    file.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    with pytest.raises(DataError, match="jsonl"):
        read_prompts([file])


def test_parquet_gives_the_same_prompts_as_jsonl(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"id": "a", "messages": [{"role": "user", "content": "One"}], "task": "x"},
        {
            "id": "b",
            "messages": [
                {"role": "system", "content": "Brief."},
                {"role": "user", "content": "Two"},
            ],
            "task": None,
        },
    ]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "p.parquet")
    lines(tmp_path / "p.jsonl", *records)
    from_parquet = read_prompts([tmp_path / "p.parquet"]).prompts
    from_jsonl = read_prompts([tmp_path / "p.jsonl"]).prompts
    assert [(p.id, p.messages, p.labels) for p in from_parquet] == [
        (p.id, p.messages, p.labels) for p in from_jsonl
    ]


def test_a_date_beside_a_prompt_is_no_label_and_in_a_tool_no_json(tmp_path: Path) -> None:
    when = datetime(2026, 7, 1, tzinfo=UTC)
    rows = [{"prompt": "One", "asked": when, "score": float("nan")}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    read = read_prompts([tmp_path / "p.parquet"])
    assert [prompt.labels["score"] for prompt in read.prompts] == ["nan"]
    assert read.not_carried == {"asked": 1}
    tool = {"name": "f", "parameters": {"since": when}}
    pq.write_table(
        pa.Table.from_pylist([{"prompt": "One", "tools": [tool]}]), tmp_path / "t.parquet"
    )
    with pytest.raises(DataError, match=r"`tools\.parameters` holds what JSON does not"):
        read_prompts([tmp_path / "t.parquet"])
    pq.write_table(pa.Table.from_pylist([{"prompt": "One", "id": when}]), tmp_path / "i.parquet")
    with pytest.raises(DataError, match="`id` is a value of type datetime instead of text"):
        read_prompts([tmp_path / "i.parquet"])


def test_parquet_rows_are_named_by_number_across_batches(tmp_path: Path) -> None:
    prompts: list[str | None] = [f"prompt {i}" for i in range(3000)]
    prompts[2500] = " "
    pq.write_table(pa.table({"prompt": prompts}), tmp_path / "p.parquet", row_group_size=700)
    read = read_prompts([tmp_path / "p.parquet"])
    assert len(read.prompts) == 2999
    assert [reject.line for reject in read.rejects] == [2501]


def test_parquet_without_a_prompt_column_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"question": ["a"]}), tmp_path / "p.parquet")
    with pytest.raises(DataError, match="question"):
        read_prompts([tmp_path / "p.parquet"])


def test_a_broken_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.parquet").write_bytes(b"PAR1 this is none")
    with pytest.raises(DataError, match=r"p\.parquet"):
        read_prompts([tmp_path / "p.parquet"])


# ---- which files ----


def test_folders_are_read_whole_and_sorted_and_hidden_files_left_out(tmp_path: Path) -> None:
    lines(tmp_path / "b.jsonl", {"prompt": "b"})
    lines(tmp_path / "a" / "z.txt", "az")
    lines(tmp_path / ".hidden.jsonl", {"prompt": "hidden"})
    lines(tmp_path / ".git" / "c.jsonl", {"prompt": "hidden too"})
    (tmp_path / "README.md").write_text("not a prompt")
    assert texts(tmp_path) == ["az", "b"]


def test_globs_and_the_same_file_twice(tmp_path: Path) -> None:
    lines(tmp_path / "train_a.jsonl", {"prompt": "a"})
    lines(tmp_path / "train_b.jsonl", {"prompt": "b"})
    lines(tmp_path / "held.jsonl", {"prompt": "h"})
    pattern, one = tmp_path / "train_*.jsonl", tmp_path / "train_b.jsonl"
    assert [p.messages[0].text for p in read_prompts([pattern, one]).prompts] == ["a", "b"]
    assert texts(str(tmp_path / "**" / "h*.jsonl")) == ["h"]


def test_relative_globs_are_relative_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines(tmp_path / "sub" / "x.txt", "x")
    monkeypatch.chdir(tmp_path)
    assert texts("sub/*.txt") == ["x"]
    assert prompt_files(["sub/*.txt"]) == [Path("sub/x.txt")]


def test_a_store_inside_a_prompt_folder_is_not_read_as_prompts(tmp_path: Path) -> None:
    lines(tmp_path / "p.jsonl", {"prompt": "a"})
    lines(tmp_path / "store" / "rejects.jsonl", {"prompt": "not me"})
    assert texts(tmp_path, exclude=[tmp_path / "store"]) == ["a"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("prompt.jsonl", "Did you mean 'prompts.jsonl'"),
        ("empty", "folder without"),
        ("x/y.txt", "no folder"),
        ("*.parquet", "no such file"),
        ("notes.md", "kind '.md'"),
    ],
)
def test_a_path_that_names_no_prompts_is_refused(tmp_path: Path, name: str, says: str) -> None:
    lines(tmp_path / "prompts.jsonl", {"prompt": "a"})
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=re.escape(says)):
        read_prompts([tmp_path / name])


def test_no_path_at_all_is_refused() -> None:
    with pytest.raises(DataError, match="no prompt file was named"):
        read_prompts([])


@pytest.mark.parametrize("suffix", ["jsonl", "txt", "json", "parquet"])
def test_an_empty_file_is_refused(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"p.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), file)
    else:
        file.write_text("\n \n" if suffix != "json" else "[]")
    with pytest.raises(DataError, match="empty file"):
        read_prompts([file])


# ---- what is no prompt ----


def test_a_line_that_is_no_prompt_is_named_kept_and_the_rest_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    bad = [
        (b"{not json", "not JSON"),
        (b'"just text"', "text instead of an object"),
        (b"[1]", "a list instead of an object"),
        (b"null", "null instead of an object"),
        (b'{"question": "x"}', "neither of `prompt` and `messages` (keys: question)"),
        (b'{"prompt": "a", "messages": []}', "both of"),
        (b'{"prompt": "  "}', "an empty prompt"),
        (b'{"messages": []}', "an empty prompt"),
        (b'{"messages": [{"role": "system", "content": "x"}]}', "an empty prompt"),
        (b'{"messages": [{"role": "user", "content": ""}]}', "an empty prompt"),
        (b'{"prompt": 3}', "`prompt` is a number instead of a list"),
        (b'{"messages": ["x"]}', "messages[0] is text"),
        (b'{"messages": [{"role": "boss", "content": "x"}]}', "role is 'boss'"),
        (b'{"messages": [{"role": "user", "content": {}}]}', "an object instead of a list"),
        (b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "'image_url'"),
        (b'{"messages": [{"role": "user", "content": [7]}]}', "'a number'"),
        (b'{"prompt": "x", "id": [1]}', "`id` is a list"),
        (b'{"prompt": "x", "id": true}', "`id` is true or false"),
        (b'{"prompt": "x", "labels": 1}', "`labels` is a number"),
        (b'{"prompt": "x", "system": 1}', "`system` is a number"),
        (b'{"prompt": "x", "tools": [1]}', "`tools` holds a number"),
        (b'{"prompt": "x", "tools": [{"function": {}}]}', "`tools.name` is null"),
        (b'{"prompt": "\\ud800"}', "half a surrogate"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "not JSON that can be read"),
        (b'{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}',
         "nothing left to answer"),
        (b'{"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}', "of a call"),
        (b'{"prompt": "x", "tools": [{"name": "a", "description": 1}]}', "description` is a n"),
    ]  # fmt: skip
    good = [json.dumps({"prompt": f"good {i}"}).encode() for i in range(10 * len(bad))]
    # the first line is good, the bad ones follow each other, the rest is good
    file.write_bytes(b"\n".join([good[0], *(line for line, _ in bad), *good[1:]]))
    out = tmp_path / "out" / "rejects.jsonl"
    read = read_prompts([file], rejects=out)
    assert len(read.prompts) == len(good)
    assert [reject.line for reject in read.rejects] == list(range(2, len(bad) + 2))
    for reject, (line, reason) in zip(read.rejects, bad, strict=True):
        assert reason in reject.reason, (line, reject.reason)
    kept = kept_rejects(out)
    assert [(r["file"], r["line"]) for r in kept] == [(str(file), r.line) for r in read.rejects]
    assert kept[0]["content"] == "{not json"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "p.jsonl"]


def test_the_rejects_file_says_what_holds_now(tmp_path: Path) -> None:
    out = tmp_path / "store" / "rejects.jsonl"
    a = lines(tmp_path / "a.jsonl", {"prompt": "a"}, "{")
    b = lines(tmp_path / "b.jsonl", {"prompt": "b"}, "[")
    read_prompts([a], rejects=out)
    read_prompts([b], rejects=out)
    read_prompts([b], rejects=out)
    assert [r["content"] for r in kept_rejects(out)] == ["{", "["]
    lines(a, {"prompt": "a"})
    read_prompts([a], rejects=out)
    assert [r["content"] for r in kept_rejects(out)] == ["["]
    lines(b, {"prompt": "b"})
    read_prompts([b], rejects=out)
    assert not out.exists()


def test_too_large_a_share_of_rejects_stops_the_reading(tmp_path: Path) -> None:
    good = [{"prompt": f"good {i}"} for i in range(16)]
    file = lines(tmp_path / "p.jsonl", *good, *["{"] * 4)
    assert len(read_prompts([file], max_rejected=0.2).rejects) == 4
    out = tmp_path / "out" / "rejects.jsonl"
    lines(file, *good, *["{"] * 5)
    with pytest.raises(DataError, match=r"p\.jsonl:17.*5 of 21") as refused:
        read_prompts([file], rejects=out, max_rejected=0.2)
    assert str(out) in str(refused.value)
    assert len(kept_rejects(out)) == 5


def test_a_share_says_nothing_of_a_handful_but_nothing_usable_is_refused(tmp_path: Path) -> None:
    file = lines(tmp_path / "p.jsonl", {"prompt": "good"}, "{", "{")
    assert texts(file) == ["good"]
    lines(file, "{", "{}")
    with pytest.raises(DataError, match="2 of 2 records"):
        read_prompts([file])


# ---- duplicates and ids ----


def test_the_same_messages_are_kept_once_and_counted(tmp_path: Path) -> None:
    a = lines(tmp_path / "a.jsonl", {"id": "1", "prompt": "same"}, {"prompt": "other"})
    b = lines(tmp_path / "b.jsonl", {"id": "2", "prompt": "same"}, {"prompt": "other "})
    read = read_prompts([a, b])
    assert read.prompts[0].id == "1"
    assert [p.messages[0].text for p in read.prompts] == ["same", "other", "other "]
    assert read.duplicates == 1


def test_an_id_that_belongs_to_another_prompt_is_told_apart(tmp_path: Path) -> None:
    a = lines(tmp_path / "a.jsonl", {"id": 1, "prompt": "from a"})
    b = lines(tmp_path / "b.jsonl", {"id": 1, "prompt": "from b"})
    read = read_prompts([a, b])
    first, second = read.prompts
    assert first.id == "1"
    assert re.fullmatch(r"1#[0-9a-f]{8}", second.id)
    assert second.labels["prompt_id"] == second.id
    assert read.renamed == {f"{b}:1": second.id}


def test_long_and_deep_fields_are_counted_and_not_carried(tmp_path: Path) -> None:
    file = lines(
        tmp_path / "p.jsonl",
        {"prompt": "a", "answer": "x" * 500, "meta": {"k": 1}, "ok": True, "none": None},
        {"prompt": "b", "answer": "short", "labels": {"split": "dev"}},
    )
    read = read_prompts([file])
    assert read.not_carried == {"answer": 1, "meta": 1}
    assert read.prompts[0].labels == {"prompt_id": read.prompts[0].id, "ok": "True"}
    assert read.prompts[1].labels["split"] == "dev"
    assert read.prompts[1].labels["answer"] == "short"


# ---- tools and parts ----


def test_tools_calls_and_parts_are_read_in_the_chat_form() -> None:
    record = {
        "tools": [
            {
                "type": "function",
                "function": {"name": "add", "description": "adds", "parameters": {"b": 1, "a": 2}},
            }
        ],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "1"}, {"text": "+1"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c", "function": {"name": "add", "arguments": '{"x": 1}'}}],
            },
            {"role": "tool", "tool_call_id": "c", "content": "2"},
        ],
    }
    prompt = prompt_of(record, "x:1", Counter())
    assert prompt.tools == (Tool(name="add", description="adds", parameters='{"a":2,"b":1}'),)
    user, assistant, tool = prompt.messages
    assert user.content == (Part(text="1"), Part(text="+1"))
    assert assistant == Message(
        role="assistant", tool_calls=(ToolCall(id="c", name="add", arguments='{"x": 1}'),)
    )
    assert tool == Message(role="tool", content=(Part(text="2"),), tool_call_id="c")


def test_a_system_field_and_a_prompt_that_is_a_conversation() -> None:
    prompt = prompt_of(
        {"system": "Brief.", "prompt": [{"role": "user", "content": "Hi"}]}, "x:1", Counter()
    )
    assert prompt.messages == (message("system", "Brief."), message("user", "Hi"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["prompt", "messages", "role", "content", "tools", "function", "name", "tool_calls",
             "id", "labels", "text", "type", "arguments", "parameters", "description", "system"]
        ),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(JSON, st.lists(JSON, max_size=2))
def test_any_json_is_a_whole_prompt_or_unfit_and_never_another_error(
    value: Any, parts: list[Any]
) -> None:
    talk = [{"role": "user", "content": parts, "tool_calls": parts}]
    for record in (value, {"messages": [value]}, {"prompt": "x", "tools": parts}, {"prompt": talk}):
        try:
            prompt = prompt_of(record, "x:1", Counter())
        except Unfit:
            continue
        asked = Exchange(
            time=datetime.now(UTC), model="m", prompt=prompt.messages, tools=prompt.tools,
            response=Response(text=""), sampling=Sampling(), labels=prompt.labels,
        )  # fmt: skip
        # every field has its declared type, or reading it back would refuse
        assert from_dict(json.loads(json.dumps(to_dict(asked)))) == asked
