"""The settings of the commands that do not train; those of training and of preparing a text are in `config`."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from tsdae.config import MethodConfig, TextConfig, flag

A_TEXT = "text file (a sentence a line), jsonl, csv, tsv, parquet, - or hub:NAME"
COLUMN = "column of a table that holds the text"
DEVICE = "auto, cuda, cpu or mps"
SAMPLED = 2000  # sentences of a text among which --make-pairs looks, so that there are no more pairs
FEWEST_PIECES = 100  # of a tokenizer: with fewer there are hardly enough for the letters


def required(text: str) -> Any:
    """A field without a default whose ``text`` is the help of its command-line flag."""
    return field(metadata={"help": text})


def at_least(smallest: int, **settings: int | None) -> None:
    """ValueError that names the first of ``settings`` that is below ``smallest``; None is not compared."""
    for name, value in settings.items():
        if value is not None and value < smallest:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {smallest}, got {value}")


@dataclass(frozen=True)
class CompareConfig:
    """What to compare models on. Default: STS-B."""

    pooling: Literal["cls", "mean", "max"] | None = flag(None, "of all models; default: what each model's folder says")
    split: Literal["dev", "test", "both"] | None = flag(None, "split of STS-B; default: both")
    stsb: str | None = flag(None, "folder that holds STS-B; default: it is downloaded once")
    pairs: str | None = flag(
        None,
        "your own pairs instead of STS-B: tsv, csv, jsonl or parquet with the columns sentence1, sentence2 and score; "
        "without score: how often sentence1 finds its sentence2 (retrieval)",
    )
    json: str | None = flag(None, "also write the scores to this file")
    device: str = flag("auto", DEVICE)

    def __post_init__(self) -> None:
        for name in ("split", "stsb"):
            if self.pairs is not None and getattr(self, name) is not None:
                raise ValueError(f"--{name} is about STS-B, and --pairs {self.pairs} takes its place")


@dataclass(frozen=True)
class SheetConfig:
    """Write a sheet of sentence pairs to score by hand, instead of comparing."""

    make_pairs: int | None = flag(
        None, "number of pairs to draw from your own text, most of them pairs about which the models disagree"
    )
    corpus: str | None = flag(None, f"with --make-pairs: {A_TEXT}")
    column: str | None = flag(None, f"with --make-pairs: {COLUMN}")
    sheet: str | None = flag(None, "with --make-pairs: file to write, .tsv or .csv; give it to --pairs when scored")

    def __post_init__(self) -> None:
        if self.make_pairs is None:
            for name in ("corpus", "column", "sheet"):
                if getattr(self, name) is not None:
                    raise ValueError(f"--{name} is for --make-pairs; a sheet that has been filled in goes to --pairs")
            return
        if not 3 <= self.make_pairs <= SAMPLED:
            raise ValueError(f"--make-pairs must lie between 3 and {SAMPLED:,}, got {self.make_pairs}")
        if self.corpus is None:
            raise ValueError("--make-pairs needs --corpus: the text from which the sentences come")
        if self.sheet is None or not self.sheet.endswith((".tsv", ".csv")):
            raise ValueError("--make-pairs needs --sheet: the file to write, whose name ends in .tsv or .csv")


@dataclass(frozen=True)
class EncodeConfig:
    """What to embed."""

    input: str = required(A_TEXT)
    output: str = required("NumPy file to write, float32 [sentences, hidden_size]; ends in .npy")
    column: str | None = flag(None, COLUMN)
    limit: int | None = flag(None, "largest number of sentences")
    pooling: Literal["cls", "mean", "max"] | None = flag(None, "default: what the model's folder says")
    batch_size: int = flag(64, "sentences per batch")
    device: str = flag("auto", DEVICE)

    def __post_init__(self) -> None:
        if not self.output.endswith(".npy"):
            raise ValueError(f"--output {self.output} must end in .npy")
        at_least(1, batch_size=self.batch_size)


@dataclass(frozen=True, kw_only=True)
class NeighboursConfig:
    """What to look for in which text."""

    corpus: str = required(A_TEXT)
    column: str | None = flag(None, COLUMN)
    limit: int | None = flag(None, "largest number of sentences")
    queries: int | None = flag(None, "number of sentences of the text, drawn at random, to use as queries; default: 10")
    query: list[str] | None = field(default=None, metadata={"help": "queries of your own, each in quotes"})
    neighbours: int = flag(3, "neighbours shown per query")
    pooling: Literal["cls", "mean", "max"] | None = flag(None, "of both models; default: what each model's folder says")
    device: str = flag("auto", DEVICE)

    def __post_init__(self) -> None:
        if self.query is not None and self.queries is not None:
            raise ValueError("--queries draws sentences and --query gives them; choose one")
        if self.query is not None and not all(text.strip() for text in self.query):
            raise ValueError("--query holds an empty text")
        at_least(1, queries=self.queries, neighbours=self.neighbours)


@dataclass(frozen=True)
class ReconstructConfig:
    """How to noise the sentences."""

    noisings: int = flag(3, "different noisings of each sentence")
    noise: str | None = flag(
        None, "delete, mask, replace, swap, insert, or module:function; default: the run's, else delete"
    )
    noise_ratio: float | None = flag(None, "share of words to change; default: the run's, else 0.6")
    pooling: Literal["cls", "mean", "max"] | None = flag(None, "default: what the model's folder says")
    seed: int = flag(0, "random seed of the noise, and of a new decoder where the model has none")
    words: str | None = flag(
        None, "what a word is: auto, tokens, characters, whitespace, or module:function; default: the run's, else auto"
    )
    max_length: int | None = flag(None, "longest sentence in tokens; default: the run's, else 75")
    device: str = flag("auto", DEVICE)

    def __post_init__(self) -> None:
        if self.noisings < 0:
            raise ValueError(f"--noisings must not be negative, got {self.noisings}")
        if self.noise_ratio is not None and not 0.0 <= self.noise_ratio < 1.0:
            raise ValueError(f"--noise-ratio must lie in [0, 1), got {self.noise_ratio}: 0.6 changes 60 % of the words")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"--seed must lie between 0 and 2**63 - 1, got {self.seed}")


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
    "cpu": Preset(4, 256, 8000, Stage(24000, 64, 1e-3), Stage(5000, 32, 2e-4)),
    "gpu": Preset(12, 512, 30000, Stage(60000, 256, 5e-4), Stage(20000, 64, 1e-4)),
}


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TextConfig):
    """What to build. The preset decides what is not given."""

    output: str = required("folder of all stages; the encoder will be OUTPUT/tsdae/encoder")
    preset: Literal["cpu", "gpu"] = flag(
        "cpu", "cpu: 4 layers, hidden size 256, an hour on 2 cores; gpu: 12 layers, hidden size 512"
    )
    tokenizer: Literal["wordpiece", "unigram"] = flag(
        "wordpiece", "kind of tokenizer; unigram for scripts without spaces"
    )
    vocabulary_size: int | None = flag(None, "pieces of the tokenizer, special tokens included; default: the preset's")
    cased: bool = flag(False, "keep capitals instead of lower-casing the text")
    layers: int | None = flag(None, "layers of the BERT; default: the preset's")
    width: int | None = flag(
        None, "hidden size of the BERT, a multiple of 64 (one attention head per 64); default: the preset's"
    )
    positions: int = flag(128, "longest sentence in tokens")
    mlm_steps: int | None = flag(None, "steps of masked-language modelling; default: the preset's")
    mlm_learning_rate: float | None = flag(
        None, "highest learning rate of masked-language modelling; default: the preset's"
    )
    mlm_ratio: float = flag(MethodConfig.mlm_ratio, "share of tokens that masked-language modelling predicts")
    tsdae_steps: int | None = flag(None, "steps of TSDAE; 0: stop after the language model; default: the preset's")
    pooling: Literal["cls", "mean", "max"] = flag("cls", "pooling of the sentence encoder")
    evaluate: str | None = flag(
        None, "as for `tsdae train`: stsb, heldout, FILE of labelled pairs, or none; default: heldout"
    )
    seed: int = flag(0, "random seed of weights, noise and order")
    precision: Literal["auto", "fp64", "fp32", "bf16", "fp16"] = flag(
        "auto", "number format of the forward and backward pass"
    )
    device: str = flag("auto", DEVICE)
    threads: int | None = flag(None, "CPU threads; default: PyTorch's choice")

    def __post_init__(self) -> None:
        shape = self.shape
        if shape.width < 64 or shape.width % 64:
            raise ValueError(f"--width must be a multiple of 64, got {shape.width}")
        at_least(1, layers=shape.layers, mlm_steps=shape.mlm.steps)
        at_least(0, tsdae_steps=shape.tsdae.steps)
        at_least(FEWEST_PIECES, vocabulary_size=shape.vocabulary_size)
        at_least(8, positions=self.positions)
        if not 0 < shape.mlm.learning_rate < math.inf:
            raise ValueError(f"--mlm-learning-rate must be positive, got {self.mlm_learning_rate}")
        if not 0 < self.mlm_ratio < 1:
            raise ValueError(f"--mlm-ratio must lie between 0 and 1, got {self.mlm_ratio}")

    @property
    def shape(self) -> Preset:
        """The preset, with what was given in its place."""
        preset = PRESETS[self.preset]
        mlm = _with(preset.mlm, steps=self.mlm_steps, learning_rate=self.mlm_learning_rate)
        tsdae = _with(preset.tsdae, steps=self.tsdae_steps)
        shape = {"layers": self.layers, "width": self.width, "vocabulary_size": self.vocabulary_size}
        return _with(preset, mlm=mlm, tsdae=tsdae, **shape)


def _with(config: Any, **changes: Any) -> Any:
    """A copy of a dataclass with the ``changes`` that are not None."""
    return dataclasses.replace(config, **{name: value for name, value in changes.items() if value is not None})


@dataclass(frozen=True)
class ReportConfig:
    """What to do with the report."""

    check: bool = flag(False, "write nothing; fail unless the report is what its rows make")
