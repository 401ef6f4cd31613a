"""What an evaluation keeps: figures that survive a crash, and hashes that follow the weights."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from stillhouse.errors import DataError
from stillhouse.evaluate.kept import Rows, kept, weights_bytes, weights_hash


def test_rows_come_back_bit_for_bit(tmp_path):
    row = np.random.default_rng(0).random(96) * 1e3
    Rows(tmp_path / "deep" / "rows.jsonl").add({"a": row, "b": row + 1})
    rows = Rows(tmp_path / "deep" / "rows.jsonl")
    assert "a" in rows
    assert "c" not in rows
    assert np.array_equal(rows["a"], row)
    assert np.array_equal(rows["b"], row + 1)


def test_a_torn_last_line_is_dropped_and_written_over(tmp_path):
    path = tmp_path / "rows.jsonl"
    Rows(path).add({"a": np.ones(3)})
    with path.open("ab") as file:
        file.write(b'["b", [1.0, 2.')
    rows = Rows(path)
    assert "b" not in rows
    rows.add({"b": np.zeros(3)})
    assert np.array_equal(Rows(path)["b"], np.zeros(3))


def test_damage_in_the_middle_is_refused_with_its_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'["a", [1.0]]\nnot json\n["b", [1.0]]\n')
    with pytest.raises(DataError, match="line 2"):
        Rows(path)


def test_rows_acknowledged_before_a_kill_are_there(tmp_path):
    writer = (
        "import sys, numpy as np\n"
        "from stillhouse.evaluate.kept import Rows\n"
        "rows = Rows(__import__('pathlib').Path(sys.argv[1]))\n"
        "for i in range(10**6):\n"
        "    rows.add({str(i): np.full(96, float(i))})\n"
        "    print(i, flush=True)\n"
    )
    path = tmp_path / "rows.jsonl"
    child = subprocess.Popen(
        [sys.executable, "-c", writer, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    acknowledged = [int(child.stdout.readline()) for _ in range(20)]
    time.sleep(0.003)
    os.kill(child.pid, signal.SIGKILL)
    acknowledged += [int(line) for line in child.stdout.read().split("\n")[:-1] if line]
    child.wait()
    child.stdout.close()
    rows = Rows(path)
    assert all(rows[str(i)][0] == i for i in acknowledged)


def test_results_are_made_again_only_when_inputs_change(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"value": len(made)}

    path = tmp_path / "speed.json"
    assert kept(path, {"student": "a"}, make) == {"value": 1}
    assert kept(path, {"student": "a"}, make) == {"value": 1}
    assert kept(path, {"student": "b"}, make) == {"value": 2}
    assert len(made) == 2


def test_hash_follows_weights_and_template_but_not_logs(tmp_path):
    folder = tmp_path / "student"
    folder.mkdir()
    with pytest.raises(DataError, match="no weights"):
        weights_hash(folder)
    (folder / "model.safetensors").write_bytes(b"\1" * 100)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    first = weights_hash(folder)
    assert first.startswith("w1:")
    assert weights_bytes(folder) == 100
    (folder / "README.md").write_text("a card")
    assert weights_hash(folder) == first
    (folder / "chat_template.jinja").write_text("{{ other }}")
    second = weights_hash(folder)
    (folder / "model.safetensors").write_bytes(b"\2" * 100)
    assert len({first, second, weights_hash(folder)}) == 3


def test_hash_of_a_folder_that_is_not_there_says_so(tmp_path):
    with pytest.raises(DataError, match="Train the student first"):
        weights_hash(tmp_path / "nothing")
