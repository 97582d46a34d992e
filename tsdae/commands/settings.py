"""The settings of `pretrain` and of the commands that do not train; all others are in `config`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from tsdae.config import (
    COLUMN,
    DEVICE,
    NOISES,
    PRECISION,
    REPORT_TO,
    SEEDS,
    THREADS,
    MethodConfig,
    TextConfig,
    TrackerName,
    flag,
    required,
)
from tsdae.utils.checks import check_fields

A_FILE = (
    "text file (one sentence per line), quoted pattern, jsonl, csv, tsv, parquet, arrow, a `datasets` folder "
    "(save_to_disk) or hub:NAME[:CONFIG]"
)
A_TEXT = f"{A_FILE}, or - (standard input)"
POOLING = "default: that of the model's folder"
LIMIT = "maximum number of sentences"
WORDS = "what counts as a word: auto, tokens, characters, whitespace, or module:function; default: the run's, else auto"
SAMPLED = 2000  # sentences of a text among which --make-pairs looks, so that there are no more pairs
STATIC_SENTENCES = 12  # of the page of `tsdae explore`
FEWEST_PIECES = 100  # of a tokenizer: with fewer there are hardly enough for the letters


@dataclass(frozen=True)
class CompareConfig:
    """Evaluation: on which pairs."""

    pooling: Literal["cls", "mean", "max", "first-last-mean"] | None = flag(
        None, f"pooling of all models; first-last-mean: mean of the token vectors of first and last layer; {POOLING}"
    )
    whiten: str | None = flag(
        None, f"also score each model with whitened vectors; the whitening is fitted on this text: {A_TEXT}"
    )
    split: Literal["dev", "test", "both"] | None = flag(None, "split of STS-B; default: both")
    stsb: str | None = flag(None, "folder with STS-B; default: downloaded once")
    pairs: list[str] | None = flag(
        None,
        "your own pairs instead of STS-B: tsv, csv, jsonl or parquet with the columns sentence1, sentence2 and score "
        "(after the models); several files: also their mean; without score: retrieval, how often sentence1 finds its "
        "sentence2",
    )
    columns: list[str] | None = flag(
        None, "with --pairs: the two text columns for retrieval, if the file has more columns"
    )
    retrieval: str | None = flag(
        None,
        "evaluate retrieval instead of STS-B: a folder in BEIR format, corpus.jsonl, queries.jsonl and qrels/test.tsv",
    )
    rerank: str | None = flag(None, "re-ranking instead of STS-B: jsonl file with query, positive and negative")
    json: str | None = flag(None, "also write the scores to this file")
    device: str = flag("auto", DEVICE)

    def __post_init__(self) -> None:
        check_fields(self)
        others = [f"--{name}" for name in ("pairs", "retrieval", "rerank") if getattr(self, name) is not None]
        for name in ("split", "stsb"):
            if others and getattr(self, name) is not None:
                raise ValueError(f"--{name} is for STS-B; it cannot be used with {others[0]}")
        if len(others) > 1:
            raise ValueError(f"{' and '.join(others)} cannot be used together; evaluate on one after the other")
        if self.columns is not None and (self.pairs is None or len(set(self.columns)) != 2 or len(self.columns) != 2):
            raise ValueError("--columns needs --pairs and two column names; put the models before it")
        if self.columns is not None and self.pairs is not None and len(self.pairs) > 1:
            raise ValueError("--columns is for one file of --pairs, without scores; several files need scores")


@dataclass(frozen=True)
class SheetConfig:
    """Labelling: write sentence pairs to score by hand, instead of evaluating."""

    make_pairs: int | None = flag(
        None,
        "number of pairs to sample from your own text, most of them pairs on which the models disagree",
        f"[3, {SAMPLED}]",
    )
    corpus: str | None = flag(None, f"with --make-pairs: {A_TEXT}")
    column: str | None = flag(None, f"with --make-pairs: {COLUMN}")
    sheet: str | None = flag(None, "with --make-pairs: .tsv or .csv file to write; pass it to --pairs when scored")

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("corpus", "column", "sheet"):
            if self.make_pairs is None and getattr(self, name) is not None:
                raise ValueError(f"--{name} is for --make-pairs; to evaluate on a scored sheet use --pairs")
        if self.make_pairs is None:
            return
        if self.corpus is None:
            raise ValueError("--make-pairs needs --corpus, the text to take sentences from")
        if self.sheet is None or not self.sheet.endswith((".tsv", ".csv")):
            raise ValueError("--make-pairs needs --sheet, a file to write whose name ends in .tsv or .csv")


@dataclass(frozen=True)
class EncodeConfig:
    """Encoding: input, output and batches."""

    input: str = required(A_TEXT)
    output: str = required("NumPy file to write (.npy): float32, one row per sentence")
    column: str | None = flag(None, COLUMN)
    limit: int | None = flag(None, LIMIT)
    pooling: Literal["cls", "mean", "max"] | None = flag(None, f"pooling of token vectors; {POOLING}")
    batch_size: int = flag(64, "sentences per batch", "[1, inf)")
    device: str = flag("auto", DEVICE)

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.output.endswith(".npy"):
            raise ValueError(f"--output {self.output} must end in .npy")


@dataclass(frozen=True)
class ExportConfig:
    """Export: the file, its precision and its operators."""

    onnx: str = required("file to write (.onnx), in a folder of its own, beside tokenizer.json")
    quantize: Literal["int8"] | None = flag(
        None, "int8: 8-bit weights, a quarter of the size; also prints the change of the scores on STS-B"
    )
    opset: int = flag(20, "ONNX opset version", "[18, inf)", "the exporter writes no older ones")
    pooling: Literal["cls", "mean", "max"] | None = flag(None, f"pooling of token vectors; {POOLING}")

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.onnx.endswith(".onnx"):
            raise ValueError(f"--onnx {self.onnx} must end in .onnx")


@dataclass(frozen=True, kw_only=True)
class NeighboursConfig:
    """Search: queries and the text to search."""

    corpus: str = required(A_TEXT)
    column: str | None = flag(None, COLUMN)
    limit: int | None = flag(None, LIMIT)
    queries: int | None = flag(
        None, "number of random sentences of the text to use as queries; default: 10", "[1, inf)"
    )
    query: list[str] | None = flag(None, "your own queries, each in quotes")
    neighbours: int = flag(3, "nearest neighbours per query", "[1, inf)")
    pooling: Literal["cls", "mean", "max"] | None = flag(None, f"pooling of both models; {POOLING}")
    device: str = flag("auto", DEVICE)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.query is not None and self.queries is not None:
            raise ValueError("--query and --queries cannot be used together: the queries are either given or sampled")
        if self.query is not None and not all(text.strip() for text in self.query):
            raise ValueError("--query has an empty text")


@dataclass(frozen=True)
class ReconstructConfig:
    """Reconstruction: how the sentences are noised."""

    noisings: int = flag(3, "noisy versions of each sentence", "[0, inf)")
    noise: str | None = flag(None, f"{NOISES}; default: the run's, else delete")
    noise_ratio: float | None = flag(
        None, "share of words that are changed; default: the run's, else 0.6", "[0, 1)", "0.6 changes 60 % of the words"
    )
    pooling: Literal["cls", "mean", "max"] | None = flag(None, f"pooling of token vectors; {POOLING}")
    seed: int = flag(0, "random seed of the noise, and of a new decoder where the model has none", SEEDS)
    words: str | None = flag(None, WORDS)
    max_length: int | None = flag(None, "maximum tokens per sentence; default: the run's, else 75")
    device: str = flag("auto", DEVICE)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class ExploreConfig:
    """Exploring: the text, the model to compare with, and where the page is shown."""

    port: int = flag(7860, "port of 127.0.0.1 on which the page is served", "[1, 65535]")
    static: str | None = flag(None, "write one .html file that needs no server, instead of serving the page")
    sentence: list[str] | None = flag(
        None,
        "sentences to start with, each in quotes (after RUN), those of the static page; default: "
        f"{STATIC_SENTENCES} drawn from the text",
    )
    before: str | None = flag(None, "model to compare with; default: the one from which the run started")
    corpus: str | None = flag(None, f"text in which neighbours are searched: {A_TEXT}; default: the run's")
    column: str | None = flag(None, COLUMN)
    limit: int = flag(2000, "number of sentences to draw from the text", "[10, inf)")
    words: str | None = flag(None, WORDS)
    device: str = flag("auto", DEVICE)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.static is not None and not self.static.endswith(".html"):
            raise ValueError(f"--static {self.static} must end in .html")
        if self.column is not None and self.corpus is None:
            raise ValueError("--column needs --corpus: the column of the run's own text is known")
        if self.sentence is not None and not all(text.strip() for text in self.sentence):
            raise ValueError("--sentence has an empty text")
        if len(self.sentence or []) > STATIC_SENTENCES:
            raise ValueError(f"--sentence takes {STATIC_SENTENCES} sentences at most, got {len(self.sentence or [])}")


@dataclass(frozen=True)
class Stage:
    """One training run of pretraining. learning_rate: its highest."""

    steps: int
    batch_size: int
    learning_rate: float


@dataclass(frozen=True)
class Preset:
    """The shape of a model and the length of its two runs, chosen for a kind of machine."""

    layers: int
    width: int
    vocabulary_size: int
    mlm: Stage
    tsdae: Stage


PRESETS = {
    "cpu": Preset(4, 256, 8000, Stage(24000, 64, 1e-3), Stage(5000, 32, 5e-4)),
    "gpu": Preset(12, 512, 30000, Stage(60000, 256, 5e-4), Stage(20000, 64, 1e-4)),
}


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TextConfig):
    """Pretraining: tokenizer, model and the two training runs."""

    output: str = required("folder of all stages; the encoder is written to OUTPUT/tsdae/encoder")
    preset: Literal["cpu", "gpu"] = flag(
        "cpu", "cpu: 4 layers, hidden size 256, an hour on 2 cores; gpu: 12 layers, hidden size 512"
    )
    tokenizer: Literal["wordpiece", "unigram"] = flag("wordpiece", "tokenizer type; unigram for scripts without spaces")
    vocabulary_size: int | None = flag(
        None, "vocabulary size, special tokens included; default: the preset's", f"[{FEWEST_PIECES}, inf)"
    )
    cased: bool = flag(False, "keep upper case instead of lower-casing the text")
    layers: int | None = flag(None, "number of layers; default: the preset's", "[1, inf)")
    width: int | None = flag(None, "hidden size, a multiple of 64 (one attention head per 64); default: the preset's")
    positions: int = flag(128, "maximum tokens per sentence", "[8, inf)")
    mlm_steps: int | None = flag(None, "steps of masked-language modelling; default: the preset's", "[1, inf)")
    mlm_learning_rate: float | None = flag(
        None, "peak learning rate of masked-language modelling; default: the preset's", "(0, inf)"
    )
    mlm_ratio: float = flag(MethodConfig.mlm_ratio, "share of tokens that masked-language modelling predicts", "(0, 1)")
    tsdae_steps: int | None = flag(
        None, "steps of TSDAE; 0: stop after the language model; default: the preset's", "[0, inf)"
    )
    pooling: Literal["cls", "mean", "max"] = flag("cls", "pooling of the sentence encoder")
    evaluate: str | None = flag(None, "as for `tsdae train`: stsb, heldout, FILE or none; default: heldout")
    seed: int = flag(0, "random seed of weights, noise and data order", SEEDS)
    report_to: list[TrackerName] | None = flag(None, REPORT_TO)
    precision: Literal["auto", "fp64", "fp32", "bf16", "fp16"] = flag("auto", PRECISION)
    device: str = flag("auto", DEVICE)
    threads: int | None = flag(None, THREADS)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.shape.width < 64 or self.shape.width % 64:
            raise ValueError(f"--width must be a multiple of 64, got {self.width}")

    @property
    def shape(self) -> Preset:
        """Return the preset, with what was given in its place."""
        preset = PRESETS[self.preset]
        mlm = _with(preset.mlm, steps=self.mlm_steps, learning_rate=self.mlm_learning_rate)
        tsdae = _with(preset.tsdae, steps=self.tsdae_steps)
        shape = {"layers": self.layers, "width": self.width, "vocabulary_size": self.vocabulary_size}
        return _with(preset, mlm=mlm, tsdae=tsdae, **shape)


def _with(config: Any, **changes: Any) -> Any:
    """Return a copy of a dataclass with the ``changes`` that are not None."""
    return dataclasses.replace(config, **{name: value for name, value in changes.items() if value is not None})


@dataclass(frozen=True)
class ReportConfig:
    """Report."""

    check: bool = flag(False, "write nothing; fail unless report.md matches its rows")
