"""Every setting, once: its default, its type, and the help of its command-line flag.

Each class is checked when it is made; what depends on files, models or hardware is checked in `commands.preflight`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from tsdae.utils.checks import check_fields

ADD_TOKENS = "file of words, one a line, that become tokens of their own"
NOISE, DECODER = ("noise", "noise_ratio"), ("tie", "decoder_layers", "decoder_input_noise")
HAS_NO_USE_FOR = {  # objectives and the settings that have no part in them
    "tsdae": ("mlm_ratio",),
    "tsdae_mlm": ("hold_on",),
    "mlm": (*NOISE, *DECODER, "hold_on"),
    "simcse": (*NOISE, *DECODER, "hold_on", "mlm_ratio"),
    "ct": (*NOISE, *DECODER, "hold_on", "mlm_ratio"),
    "retromae": (*NOISE, *DECODER, "hold_on", "mlm_ratio"),
    "bag_of_words": (*DECODER, "hold_on", "mlm_ratio"),
    "barlow_twins": (*DECODER, "hold_on", "mlm_ratio"),
}


def flag(default: Any, text: str, interval: str | None = None, hint: str = "") -> Any:
    """Make a field of a configuration: ``text`` is the help of its command-line flag, ``interval`` its range."""
    within = {} if interval is None else {"range": interval, "hint": hint}
    return field(default=default, metadata={"help": text} | within)


@dataclass(frozen=True)
class TextConfig:
    """What of a text is used, and for what: everything that is decided when it is read."""

    column: str | None = flag(None, "column of a table that holds the text")
    limit: int | None = flag(None, "use so many sentences at most; default for hub: 100,000")
    sentences: str | None = flag(
        None,
        "lines: a line is a sentence; of documents: regex, icu[:LANGUAGE] or module:function; default: regex for hub:",
    )
    min_characters: int | None = flag(None, "leave out shorter sentences; default 11 with regex, else 1")
    max_characters: int | None = flag(None, "leave out longer sentences")
    min_letters: float | None = flag(None, "leave out sentences with a smaller share of letters, 0.5 for example")
    keep_repeated: bool = flag(False, "keep sentences that the text has already had")
    shuffle: bool = flag(False, "in random order; --limit is drawn from the whole text, not from its beginning")
    words: str | None = flag(
        None,
        "what a word is: auto (the tokenizer's own, and character clusters where a script writes no spaces), tokens, "
        "characters, whitespace, or module:function, a segmenter; default: auto",
    )
    heldout: str | None = flag(
        None, "sentences kept from training, a number or a file; default: 1,000 or 10 %%, whichever is less"
    )

    @property
    def of_text(self) -> dict[str, Any]:
        """These settings alone, of a class that has more."""
        return {setting.name: getattr(self, setting.name) for setting in dataclasses.fields(TextConfig)}


@dataclass(frozen=True)
class DataConfig(TextConfig):
    """What to train and evaluate on. Without a corpus: the sample run, on the sentences of STS-B's train split."""

    corpus: str | None = flag(
        None, "text file, jsonl, csv, tsv, parquet (also .gz), -, hub:NAME[:CONFIG], or a folder of scripts/prepare.py"
    )
    max_length: int = flag(75, "longest sentence in tokens, special ones included")
    evaluate: str | None = flag(
        None, "stsb, heldout, FILE of labelled pairs, module:function, or none; default: stsb, with --corpus heldout"
    )


@dataclass(frozen=True)
class MethodConfig:
    """Model, noise and objective."""

    model: str | None = flag(
        None, "mini (built in: raw, small, English), a model folder, or a name on the Hugging Face hub; default: mini"
    )
    recipe: Literal["auto", "paper", "small", "adapt"] = flag(
        "auto",
        "batch size, learning rate and length, where no flag gives them: paper (models of BERT-base's size), small "
        "(small raw models), adapt (finished sentence models); default: by the model",
    )
    add_tokens: str | None = flag(None, ADD_TOKENS)
    noise: str = flag("delete", "delete, mask, replace, swap, insert, or module:function")
    noise_ratio: float = flag(
        0.6, "share of words to change; 0.6 deletes 60 %% (paper: 0.6)", "[0, 1)", "0.6 changes 60 % of the words"
    )
    pooling: Literal["cls", "mean", "max"] = flag("cls", "how token vectors become one (paper: cls)")
    tie: bool = flag(True, "decoder on the encoder's own layers (paper: tied)")
    decoder_layers: int | None = flag(None, "layers of the decoder, the first ones; default: all")
    decoder_input_noise: float = flag(0.0, "share of the decoder's own input that is masked (paper: 0)", "[0, 1]")
    objective: str = flag(
        "tsdae",
        "tsdae, mlm (masked-language modelling), simcse, ct (contrastive tension), bag_of_words, retromae, "
        "barlow_twins, tsdae_mlm, my_loss.py:function or module:function",
    )
    mlm_ratio: float = flag(
        0.15, "share of tokens that mlm and tsdae_mlm predict", "(0, 1]", "0.15 predicts 15 % of the tokens"
    )
    hold_on: float = flag(
        0.0,
        "weight of a term that keeps which sentences are alike to a model that is a sentence model already: 100",
        "[0, inf)",
        "100 holds on, 0 does not",
    )
    dropout: float | None = flag(None, "default: as in the checkpoint", "[0, 1)")
    attention_dropout: float | None = flag(None, "default: as in the checkpoint", "[0, 1)")

    def __post_init__(self) -> None:
        check_fields(self)
        self.check_used(
            {field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default}
        )

    def check_used(self, given: set[str]) -> None:
        """ValueError if one of these settings, which were given, has no part in the objective."""
        for name in HAS_NO_USE_FOR.get(self.objective, ("mlm_ratio", "hold_on")):
            if name in given:
                has_no = "masks tokens by --mlm-ratio" if self.objective == "mlm" else "has no use for it"
                raise ValueError(f"--{name.replace('_', '-')}: the objective {self.objective} {has_no}")


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults are the recipe of the paper on the sample run."""

    steps: int = flag(1000, "optimiser steps", "[1, inf)")
    epochs: float | None = flag(None, "passes over the corpus, instead of --steps", "(0, inf)")
    min_steps: int = flag(
        0, "with --epochs: make at least so many steps; --early-stop does not count those before", "[0, inf)"
    )
    batch_size: int = flag(8, "sentences in a batch (paper: 8)", "[1, inf)")
    accumulate: int = flag(1, "batches in one optimiser step, normalised by their tokens", "[1, inf)")
    learning_rate: float = flag(3e-5, "AdamW's learning rate (paper: 3e-5)", "(0, inf)")
    schedule: Literal["constant", "linear"] = flag("constant", "learning rate over time; linear falls to 0")
    warmup_steps: int = flag(0, "steps over which the learning rate rises from 0", "[0, inf)")
    weight_decay: float = flag(0.0, "of matrices, not of biases and layer norms", "[0, inf]")
    clip: float = flag(1.0, "largest gradient norm; 0: no clipping", "[0, inf]")
    seed: int = flag(0, "of noise, order, new weights and dropout", "[0, 9223372036854775808)")
    precision: Literal["auto", "fp64", "fp32", "bf16", "fp16"] = flag("auto", "of the forward and backward pass")
    device: str = flag("auto", "auto, cuda, cpu or mps")
    threads: int | None = flag(None, "CPU threads; default: PyTorch's choice", "[1, inf)")
    deterministic: bool = flag(False, "only algorithms that repeat bit for bit")
    compile: bool = flag(False, "torch.compile of the layers: a minute to compile, and slower on CPUs")
    output: str | None = flag(None, "run folder; default: the next number under runs/")
    overwrite: bool = flag(False, "replace the run that --output holds")
    resume: bool = flag(False, "go on with the run that --output holds, from its newest checkpoint")
    eval_every: int = flag(250, "steps between evaluations; 0: only the final table", "[0, inf)")
    save_every: int = flag(500, "steps between checkpoints; 0: only when stopped by a signal", "[0, inf)")
    keep: int = flag(2, "checkpoints that stay, the newest ones", "[1, inf)")
    log_every: int = flag(10, "steps between rows of metrics.jsonl, at most 50", "[1, 50]")
    best: str | None = flag(
        None, "measure by which best/ is chosen; default: noisy_retrieval, with --objective mlm heldout_loss"
    )
    early_stop: str | None = flag(None, "measure that ends the run when it gets no better; default: none does")
    patience: int = flag(
        3, "evaluations without a better value, from --min-steps on, after which --early-stop ends the run", "[1, inf)"
    )
    tensorboard: bool = flag(False, "send the log to TensorBoard as well")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.early_stop is not None and self.eval_every == 0:
            raise ValueError("--early-stop needs evaluations: --eval-every is 0")
        if self.resume and self.overwrite:
            raise ValueError("--resume goes on with a run and --overwrite replaces it; give one of them")
        if self.resume and self.output is None:
            raise ValueError("--resume needs --output RUN, the run to go on with")

    @property
    def step_size(self) -> int:
        """Sentences in one optimiser step, over all batches and processes."""
        from tsdae.utils import distributed  # here: it brings PyTorch along, and flags are read before

        return self.batch_size * self.accumulate * distributed.count()

    def steps_for(self, rows: int) -> int:
        """Optimiser steps: --steps, or as many as --epochs and --min-steps need on ``rows`` sentences."""
        if self.epochs is None:
            return self.steps
        return max(1, self.min_steps, math.ceil(self.epochs * rows / self.step_size))

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Of the step with this number, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / (self.warmup_steps + 1)
        if self.schedule == "linear":
            return self.learning_rate * (steps - step) / max(1, steps - self.warmup_steps)
        return self.learning_rate


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(TextConfig):
    """Prepares a text for training: tokenises it once, into a folder that training maps."""

    model: str = field(metadata={"help": "model folder or name on the Hugging Face hub, whose tokenizer is taken"})
    output: str = field(metadata={"help": "folder to write; give it to scripts/train.py as --corpus"})
    overwrite: bool = flag(False, "replace the prepared corpus that --output holds")
    add_tokens: str | None = flag(None, ADD_TOKENS)
    workers: int | None = flag(None, "processes that tokenise; default: one a core", "[1, inf)")

    def __post_init__(self) -> None:
        check_fields(self)
