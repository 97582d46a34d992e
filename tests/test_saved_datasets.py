"""Folders that `datasets` wrote by save_to_disk, wherever a text or pairs are read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from tests import tiny
from tests.runs import rows
from tests.scripts import PAIRS, Run
from tests.tables import arrow
from tsdae import load_sentences
from tsdae.commands.prepare import prepare
from tsdae.config import PrepareConfig
from tsdae.evaluation.pairs import load_pairs
from tsdae.text.corpus import Corpus

TEXTS = tiny.SENTENCES
TRAIN = "--model model --steps 2 --batch-size 2 --eval-every 1 --heldout 2 --precision fp32 --threads 1 --device cpu"


@pytest.fixture(autouse=True)
def _quiet() -> None:
    datasets.disable_progress_bars()


def table(**columns: list[Any]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"id": list(range(len(TEXTS))), "body": TEXTS} | columns)


def test_rows_are_those_of_the_dataset_in_its_order(tmp_path: Path) -> None:
    """Over several files, after a choice of rows; as load_from_disk gives them."""
    table().select([4, 2, 0, 3, 1]).save_to_disk(tmp_path / "saved", num_shards=3)
    expected = list(datasets.load_from_disk(tmp_path / "saved")["body"])
    assert load_sentences(tmp_path / "saved", column="body") == expected == [TEXTS[i] for i in (4, 2, 0, 3, 1)]
    with pytest.raises(ValueError, match=r"data-00000-of-00003.arrow has the columns id, body; choose one with --colu"):
        load_sentences(tmp_path / "saved")


def test_the_split_of_a_dictionary(tmp_path: Path) -> None:
    """Train, or the only one; of others one has to be chosen."""
    first, second = table().select([0]), table().select([1])
    for name, splits in {"usual": ("test", "train"), "one": ("validation",), "others": ("dev", "test")}.items():
        datasets.DatasetDict(dict(zip(splits, (first, second), strict=False))).save_to_disk(tmp_path / name)
    assert load_sentences(tmp_path / "usual", column="body") == TEXTS[1:2]
    assert load_sentences(tmp_path / "one", column="body") == TEXTS[:1]
    assert load_sentences(tmp_path / "others" / "test", column="body") == TEXTS[1:2]
    with pytest.raises(ValueError, match=r"holds the splits dev, test; give the folder of one of them, such as .*/dev"):
        load_sentences(tmp_path / "others")


def test_training_from_it_is_training_from_the_text(place: Path, run: Run) -> None:
    """Also with the held-out sentences in one, and once it is prepared; a prepared folder is told apart."""
    table().save_to_disk("saved")
    table().select(range(2)).save_to_disk("apart")
    assert run("train", f"--corpus text.txt {TRAIN} --output from-text").code == 0
    assert run("train", f"--corpus saved --column body {TRAIN} --output from-saved").code == 0
    assert rows(place / "from-saved") == rows(place / "from-text")
    assert run("prepare", "saved --column body --model model --heldout 2 --output prepared").code == 0
    assert run("train", f"--corpus prepared {TRAIN.replace('--heldout 2', '')} --output from-prepared").code == 0
    assert rows(place / "from-prepared") == rows(place / "from-text")
    apart = TRAIN.replace("--heldout 2", "--heldout apart")
    assert run("train", f"--corpus saved --column body {apart} --output apart-run").code == 0
    assert json.loads((place / "apart-run" / "config.json").read_text())["training_sentences"] == len(TEXTS) - 2


def test_a_saved_text_that_has_changed_is_prepared_anew(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The unfinished work of a preparation belongs to files of one size and time."""
    config = PrepareConfig(model="model", output="made", column="body", heldout="0")
    table().save_to_disk("saved")
    with monkeypatch.context() as patch:
        patch.setattr("tsdae.commands.prepare.report_of", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare("saved", config)
    datasets.Dataset.from_dict({"body": ["a woman cooks bread"] * 3}).save_to_disk("saved")
    prepare("saved", config)
    assert len(Corpus.open("made")) == 1


def test_other_commands(place: Path, run: Run) -> None:
    table().save_to_disk("saved")
    assert run("encode", "model --input saved --column body --output vectors.npy --device cpu").code == 0
    assert run("encode", "model --input text.txt --output same.npy --device cpu").code == 0
    np.testing.assert_array_equal(np.load("vectors.npy"), np.load("same.npy"))
    assert run("neighbours", "model model --corpus saved --column body --queries 2 --device cpu").code == 0


def test_pairs(place: Path, run: Run) -> None:
    names = ("sentence1", "sentence2", "score")
    columns = dict(zip(names, zip(*(line.split("\t") for line in PAIRS), strict=True), strict=True))
    datasets.Dataset.from_dict({name: list(cells) for name, cells in columns.items()}).save_to_disk("saved")
    assert load_pairs("saved").first == load_pairs("pairs.tsv").first
    datasets.Dataset.from_dict({name: list(columns[name]) for name in names[:2]}).save_to_disk("without")
    assert "accuracy@1" in run("evaluate", "model --pairs without --device cpu").out


def changed(name: str, **content: Any) -> Callable[[Path], None]:
    """Return a change of the folder: this JSON file with other content."""

    def change(folder: Path) -> None:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | content))

    return change


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a file is missing": (
        lambda folder: next(folder.glob("*.arrow")).unlink(),
        "is damaged: data-00000-of-00001.arrow",
    ),
    "a file is cut": (
        lambda folder: next(folder.glob("*.arrow")).write_bytes(b"\xff\xff\xff\xff\x10"),
        "data-00000-of-00001.arrow cannot be read as arrow",
    ),
    "a place outside": (
        changed("state.json", _data_files=[{"filename": "../text.arrow"}]),
        "is damaged: state.json does not name what it holds",
    ),
    "no names": (changed("state.json", _data_files=[3]), "is damaged: state.json does not name what it holds"),
    "no list": (changed("state.json", _data_files="data"), "is damaged: state.json does not name what it holds"),
    "no JSON": (lambda folder: (folder / "state.json").write_text("{"), "state.json is not valid JSON"),
    "splits outside": (
        lambda folder: (folder / "dataset_dict.json").write_text('{"splits": ["../other"]}'),
        "is damaged: dataset_dict.json does not name what it holds",
    ),
    "a split is missing": (
        lambda folder: (folder / "dataset_dict.json").write_text('{"splits": ["train"]}'),
        "saved/train is missing or holds no state.json",
    ),
    "no rows": (changed("state.json", _data_files=[]), "saved holds no sentence (it is empty)"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_folders(tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    folder = tmp_path / "saved"
    table().save_to_disk(folder)
    damage(folder)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_sentences(folder, column="body")
    assert "\n" not in str(caught.value)


def test_it_is_no_dataset_of_the_hub(tmp_path: Path) -> None:
    table().save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="it is a folder of save_to_disk, which is read as it is: leave out hub:"):
        load_sentences(f"hub:{tmp_path / 'saved'}")


def test_damaged_offsets(tmp_path: Path) -> None:
    """pyarrow takes them as they are, and would read another place of the memory, or end the process."""
    offsets, wrong = (np.array(ends, np.int32).tobytes() for ends in ([0, 5, 8], [0, 5, 12]))
    path, content = tmp_path / "a.arrow", arrow(text=["a dog", "cat"])
    path.write_bytes(content)
    assert load_sentences(path) == ["a dog", "cat"]
    assert offsets in content, "the premise"
    path.write_bytes(content.replace(offsets, wrong))
    with pytest.raises(ValueError, match=r"a\.arrow cannot be read as arrow: In column 0: Invalid"):
        load_sentences(path)
