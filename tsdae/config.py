"""The settings of training, preparing and ablations: default, type and help of each command-line flag.

Each class is checked when it is made; what depends on files, models or hardware is checked in `commands.preflight`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from tsdae.utils.checks import check_fields

ADD_TOKENS = "file of words, one per line, that are added to the vocabulary"
COLUMN = "name of the text column of a table (csv, tsv, jsonl, parquet)"
DEVICE = "auto, cpu, cuda, cuda:N or mps"
FEWEST_SEEDS = 3  # of an interval over seeds: two give a t value of 12.7, which nothing passes
NOISES = "delete, mask, replace, swap, insert, or module:function"
THREADS = "number of CPU threads; default: chosen by PyTorch"
PRECISION = "training precision; bf16 and fp16 are mixed precision"
REPORT_TO = "experiment trackers to log to, one or several; none: resume a run without its trackers"
BY_RECIPE = "by --recipe"
SEEDS = "[0, 9223372036854775808)"  # 64 bits, signed
TrackerName = Literal["tensorboard", "wandb", "trackio", "none"]
NOISE, DECODER = ("noise", "noise_ratio"), ("tie", "decoder_layers", "decoder_input_noise")
HAS_NO_USE_FOR = {  # objectives and the settings that have no part in them
    "tsdae": ("mlm_ratio",),
    "tsdae_mlm": ("tie", "hold_on"),
    "mlm": (*NOISE, *DECODER, "hold_on"),
    "simcse": (*NOISE, *DECODER, "hold_on", "mlm_ratio"),
    "ct": (*NOISE, *DECODER, "hold_on", "mlm_ratio"),
    "retromae": (*NOISE, *DECODER, "hold_on", "mlm_ratio"),
    "bag_of_words": (*DECODER, "hold_on", "mlm_ratio"),
    "barlow_twins": (*DECODER, "hold_on", "mlm_ratio"),
}


def flag(default: Any, text: str, interval: str | None = None, hint: str = "", shown: str = "") -> Any:
    """Make a field of a configuration: ``text`` is the help of its command-line flag, ``interval`` its range.

    shown: the default as --help names it, where a command fills another one in.
    """
    within = {} if interval is None else {"range": interval, "hint": hint}
    return field(default=default, metadata={"help": text, "shown": shown} | within)


def required(text: str) -> Any:
    """Make a field without a default."""
    return flag(dataclasses.MISSING, text)


@dataclass(frozen=True)
class TextConfig:
    """Text: how the corpus is read, filtered and split."""

    column: str | None = flag(None, COLUMN)
    limit: int | None = flag(None, "maximum number of sentences; default: all, for hub: 100,000")
    sentences: str | None = flag(
        None,
        "how a text is split into sentences: lines (one per line), regex, icu[:LANGUAGE] or module:function; "
        "default: lines, for hub: regex",
    )
    min_characters: int | None = flag(None, "drop shorter sentences; default: 11 with --sentences regex, else 1")
    max_characters: int | None = flag(None, "drop longer sentences")
    min_letters: float | None = flag(None, "drop sentences with a smaller share of letters (try 0.5)")
    keep_repeated: bool = flag(False, "keep duplicate sentences")
    shuffle: bool = flag(False, "shuffle the text, so that --limit takes a random sample instead of its beginning")
    words: str | None = flag(
        None,
        "what counts as a word: auto (the tokenizer's words; character clusters in scripts without spaces), tokens, "
        "characters, whitespace, or module:function (a segmenter); default: auto",
    )
    heldout: str | None = flag(
        None, "number of held-out sentences, or a file of them; default: 1,000 or 10 %%, whichever is less"
    )

    @property
    def of_text(self) -> dict[str, Any]:
        """Return these settings alone, of a class that has more."""
        return {setting.name: getattr(self, setting.name) for setting in dataclasses.fields(TextConfig)}


@dataclass(frozen=True)
class DataConfig(TextConfig):
    """Data: what to train and evaluate on. Without a corpus: the sentences of STS-B's train split."""

    corpus: str | None = flag(
        None,
        "text, jsonl, csv, tsv, parquet or arrow file (also .gz, .zst), quoted pattern, - (standard input), "
        "hub:NAME[:CONFIG], or a folder written by `tsdae prepare` or by save_to_disk of `datasets`; default: "
        "sentences of STS-B",
    )
    max_length: int = flag(75, "maximum tokens per sentence, special tokens included; longer ones are truncated")
    evaluate: str | None = flag(
        None,
        "stsb, heldout (no labels), FILE of scored pairs, module:function, or none; default: heldout with --corpus, "
        "else stsb",
    )


@dataclass(frozen=True)
class ModelConfig:
    """Model: where training starts."""

    model: str | None = flag(
        None,
        "mini (built in: small, English, pretrained), a model folder or a Hugging Face name; default without --corpus: "
        "mini",
    )
    recipe: Literal["auto", "paper", "small", "adapt"] = flag(
        "auto",
        "batch size, learning rate, steps and --hold-on where no flag gives them, for a raw model of BERT-base's size "
        "(paper), a small raw model (small) or a sentence model (adapt); auto: by the model",
    )
    add_tokens: str | None = flag(None, ADD_TOKENS)
    pooling: Literal["cls", "mean", "max"] = flag("cls", "how token vectors become the sentence vector (paper: cls)")
    dropout: float | None = flag(None, "hidden dropout; default: as in the model's config", "[0, 1)")
    attention_dropout: float | None = flag(
        None, "dropout of attention weights; default: as in the model's config", "[0, 1)"
    )


@dataclass(frozen=True)
class MethodConfig(ModelConfig):
    """Method: noise, decoder and objective."""

    noise: str = flag("delete", f"{NOISES} (paper: delete)")
    noise_ratio: float = flag(
        0.6, "share of words that are changed (paper: 0.6)", "[0, 1)", "0.6 changes 60 % of the words"
    )
    tie: bool = flag(True, "share the encoder's layers with the decoder (paper: tied)")
    decoder_layers: int | None = flag(None, "number of decoder layers: the first N; default: all")
    decoder_input_noise: float = flag(0.0, "share of the decoder's input tokens that are masked (paper: 0)", "[0, 1]")
    objective: str = flag(
        "tsdae",
        "tsdae, mlm (masked-language modelling), simcse, ct (contrastive tension), bag_of_words, retromae, "
        "barlow_twins, tsdae_mlm, or your own: my_loss.py:function or module:function",
    )
    mlm_ratio: float = flag(
        0.15, "share of tokens that mlm and tsdae_mlm predict", "(0, 1]", "0.15 predicts 15 % of the tokens"
    )
    hold_on: float = flag(
        0.0,
        "weight of similarity distillation from the initial model, which must be a sentence model (try 100)",
        "[0, inf)",
        "try 100, or 0 to train without it",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        self.check_used(
            {field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default}
        )

    def check_used(self, given: set[str]) -> None:
        """ValueError if one of these settings, which were given, has no part in the objective."""
        for name in HAS_NO_USE_FOR.get(self.objective, ("mlm_ratio", "hold_on")):
            if name in given:
                has_no = (
                    "masks tokens by --mlm-ratio" if self.objective == "mlm" and name in NOISE else "does not use it"
                )
                no = "no-" if getattr(self, name) is False else ""
                raise ValueError(f"--{no}{name.replace('_', '-')}: the objective {self.objective} {has_no}")


@dataclass(frozen=True, kw_only=True)
class HardwareConfig:
    """Hardware and precision."""

    precision: Literal["auto", "fp64", "fp32", "bf16", "fp16"] = flag("auto", PRECISION)
    device: str = flag("auto", DEVICE)
    threads: int | None = flag(None, THREADS, "[1, inf)")
    deterministic: bool = flag(False, "use only deterministic algorithms")
    compile: bool = flag(False, "compile the layers with torch.compile: takes a minute, and is slower on CPUs")


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Output: run folder, checkpoints and logs."""

    output: str | None = flag(None, "run folder; default: the next number in runs/")
    overwrite: bool = flag(False, "replace the run in --output")
    resume: bool = flag(False, "resume the run in --output from its latest checkpoint")
    save_every: int = flag(500, "steps between checkpoints; 0: only when stopped by a signal", "[0, inf)")
    keep: int = flag(2, "number of latest checkpoints to keep", "[1, inf)")
    log_every: int = flag(10, "steps between rows of metrics.jsonl, at most 50", "[1, 50]")
    report_to: list[TrackerName] | None = flag(None, REPORT_TO)
    tensorboard: bool = flag(False, "same as --report-to tensorboard; can be combined with it")

    @property
    def trackers(self) -> list[str]:
        """Return the names of the trackers that get the log."""
        names = [*(self.report_to or []), *["tensorboard"] * self.tensorboard]
        return [] if "none" in names else list(dict.fromkeys(names))


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Evaluation during training."""

    eval_every: int = flag(250, "steps between evaluations; 0: only the final table", "[0, inf)")
    best: str | None = flag(
        None, "metric that selects best/; default: noisy_retrieval, with --objective mlm heldout_loss"
    )
    early_stop: str | None = flag(None, "metric for early stopping; default: no early stopping")
    patience: int = flag(
        3, "evaluations without improvement before --early-stop ends the run, counted from --min-steps", "[1, inf)"
    )


@dataclass(frozen=True)
class TrainConfig(EvaluationConfig, OutputConfig, HardwareConfig):
    """Training: length, batches and optimiser. The defaults are the recipe of the paper.

    >>> TrainConfig(epochs=1, batch_size=32).steps_for(10_000)
    313
    """

    steps: int = flag(1000, "optimiser steps", "[1, inf)", shown=BY_RECIPE)
    epochs: float | None = flag(None, "passes over the corpus, instead of --steps", "(0, inf)")
    min_steps: int = flag(
        0,
        "with --epochs: minimum number of steps; --early-stop ignores evaluations before it",
        "[0, inf)",
        shown=BY_RECIPE,
    )
    batch_size: int = flag(8, "sentences per batch (paper: 8)", "[1, inf)", shown=BY_RECIPE)
    accumulate: int = flag(1, "batches per optimiser step; the loss is the mean over all their tokens", "[1, inf)")
    learning_rate: float = flag(3e-5, "peak learning rate of AdamW (paper: 3e-5)", "(0, inf)", shown=BY_RECIPE)
    schedule: Literal["constant", "linear"] = flag("constant", "learning rate after warm-up; linear decays to 0")
    warmup_steps: int = flag(0, "steps of linear warm-up", "[0, inf)")
    weight_decay: float = flag(0.0, "weight decay of weight matrices; biases and layer norms have none", "[0, inf)")
    freeze: str | None = flag(
        None,
        "parameters to freeze: name patterns, separated by commas, such as 'encoder.bert.embeddings.*'; default: none",
    )
    clip: float = flag(1.0, "maximum gradient norm; 0: no clipping", "[0, inf]")
    seed: int = flag(0, "random seed of noise, data order, new weights and dropout", SEEDS)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.early_stop is not None and self.eval_every == 0:
            raise ValueError("--early-stop needs evaluations: --eval-every is 0")
        if self.resume and self.overwrite:
            raise ValueError("--resume continues a run and --overwrite replaces it; give only one of them")
        if self.resume and self.output is None:
            raise ValueError("--resume needs --output RUN, the run to continue")

    @property
    def step_size(self) -> int:
        """Return the sentences in one optimiser step, over all batches and processes."""
        from tsdae.utils import distributed  # imports PyTorch, which takes seconds: not before the flags are parsed

        return self.batch_size * self.accumulate * distributed.world_size()

    def steps_for(self, rows: int) -> int:
        """Return the optimiser steps: --steps, or as many as --epochs and --min-steps need on ``rows`` sentences."""
        if self.epochs is None:
            return self.steps
        return max(1, self.min_steps, math.ceil(self.epochs * rows / self.step_size))

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / (self.warmup_steps + 1)
        if self.schedule == "linear":
            return self.learning_rate * (steps - step) / max(1, steps - self.warmup_steps)
        return self.learning_rate


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(TextConfig):
    """Output: the prepared corpus."""

    model: str = required("model whose tokenizer is used: mini, a model folder or a Hugging Face name")
    output: str = required("folder to write, the --corpus of `tsdae train`")
    overwrite: bool = flag(False, "replace the prepared corpus in --output")
    add_tokens: str | None = flag(None, ADD_TOKENS)
    workers: int | None = flag(None, "number of tokenising processes; default: one per core", "[1, inf)")

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class AblationConfig:
    """Which settings to compare. --output is the folder of all runs, --seed the first of the seeds."""

    grid: list[str] = required("axes, as field=value,value or field=first:last:step; fields are flags of `tsdae train`")
    seeds: int = flag(5, "runs per setting; intervals need at least 3", "[1, inf)")
    intervals: bool = flag(True, "compute confidence intervals over seeds")
    product: bool = flag(False, "run all combinations of the axes instead of one axis at a time")
    jobs: int = flag(1, "parallel runs, which share the CPU's threads", "[1, inf)")
    dry_run: bool = flag(False, "print the runs and the estimated hours, then stop")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.intervals and self.seeds < FEWEST_SEEDS:
            raise ValueError(
                f"--seeds {self.seeds}: intervals need at least {FEWEST_SEEDS} seeds; with fewer, add --no-intervals"
            )
