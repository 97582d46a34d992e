"""The command line: ``tsdae COMMAND`` is ``scripts/COMMAND.py`` is a function of this file.

Its docstring is what --help says; without ``arguments`` it takes those of the process. What does the work is imported
when the flags are right: it brings PyTorch along, which takes seconds, and --help and mistyped flags need none of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from tsdae.commands import settings
from tsdae.commands.parser import Parser, did_you_mean
from tsdae.config import DataConfig, MethodConfig, PrepareConfig, TrainConfig

Command = Callable[[list[str] | None], None]
A_MODEL = "run folder, model folder, or name on the Hugging Face hub"
A_TEXT = "text file, pattern, jsonl, csv, tsv, parquet or hub:NAME[:CONFIG]"


def train(arguments: list[str] | None = None) -> None:
    """Train a sentence encoder with TSDAE. Without arguments: the built-in model mini on the sentences of STS-B."""
    parser = _parser(train, DataConfig, MethodConfig, TrainConfig)
    data, method, config = parser.configs(arguments)
    from tsdae.commands.train import train_or_resume

    parser.run(lambda: train_or_resume(data, method, config, parser.given))


def prepare(arguments: list[str] | None = None) -> None:
    """Tokenise a text once, into a folder that tsdae train takes as --corpus."""
    parser = _parser(prepare, PrepareConfig)
    parser.add_argument("corpus", metavar="CORPUS", help=f"{A_TEXT}, or - (standard input)")
    config, rest = parser.configs(arguments)
    from tsdae.commands.prepare import prepare as prepare_text

    parser.run(lambda: prepare_text(rest.corpus, config))


def pretrain(arguments: list[str] | None = None) -> None:
    """Make a sentence encoder from nothing but text: a tokenizer, a BERT by masked-language modelling, then TSDAE."""
    parser = _parser(pretrain, settings.PretrainConfig)
    parser.add_argument("corpus", metavar="CORPUS", help=A_TEXT)
    config, rest = parser.configs(arguments)
    from tsdae.commands.pretrain import pretrain as pretrain_on

    parser.run(lambda: print(f"done: {pretrain_on(rest.corpus, config)}"))


def evaluate(arguments: list[str] | None = None) -> None:
    """Compare models on STS-B, or on --pairs of your own: scores x 100 with intervals, differences from the first.

    With --make-pairs: write a sheet of pairs to score by hand instead.
    """
    parser = _parser(evaluate, settings.CompareConfig, settings.SheetConfig)
    parser.add_argument("models", nargs="+", metavar="MODEL", help=A_MODEL)
    config, sheet, rest = parser.configs(arguments)
    from tsdae.commands.evaluate import compare
    from tsdae.commands.sheet import make_sheet

    parser.run(lambda: make_sheet(rest.models, sheet, config) if sheet.make_pairs else compare(rest.models, config))


def encode(arguments: list[str] | None = None) -> None:
    """Embed a text with a trained encoder: one float32 row per sentence, in the order of the input."""
    parser = _parser(encode, settings.EncodeConfig)
    parser.add_argument("model", metavar="MODEL", help=A_MODEL)
    config, rest = parser.configs(arguments)
    from tsdae.commands.encode import encode_file

    parser.run(lambda: encode_file(rest.model, config))


def reconstruct(arguments: list[str] | None = None) -> None:
    """Show what sentence vectors hold: sentences are noised, encoded, and written again by the decoder."""
    parser = _parser(reconstruct, settings.ReconstructConfig)
    parser.add_argument("run", metavar="RUN", help="run folder; or a model, which gets a new, untrained decoder")
    parser.add_argument("sentences", nargs="+", metavar="SENTENCE", help="sentences, each in quotes")
    config, rest = parser.configs(arguments)
    from tsdae.commands.reconstruct import show

    parser.run(lambda: show(rest.run, rest.sentences, config))


def neighbours(arguments: list[str] | None = None) -> None:
    """Show what two models find in a text: each query's nearest sentences side by side, and how many are shared."""
    parser = _parser(neighbours, settings.NeighboursConfig)
    for model in ("before", "after"):
        parser.add_argument(model, metavar=model.upper(), help=A_MODEL)
    config, rest = parser.configs(arguments)
    from tsdae.commands.neighbours import show_neighbours

    parser.run(lambda: show_neighbours(rest.before, rest.after, config))


def ablate(arguments: list[str] | None = None) -> None:
    """Train in several settings with several seeds, paired, and write a row per run and a report with intervals."""
    from tsdae.ablation.grid import AblationConfig

    parser = _parser(ablate, AblationConfig, DataConfig, MethodConfig, TrainConfig)
    config, data, method, base = parser.configs(arguments)
    from tsdae.ablation.runner import ablate as ablate_in

    parser.run(lambda: ablate_in(data, method, base, config, given=parser.given))


def report(arguments: list[str] | None = None) -> None:
    """Write report.md and report.html of an ablation again, from its rows; with --check only compare."""
    parser = _parser(report, settings.ReportConfig)
    parser.add_argument("folder", metavar="FOLDER", help="--output of `tsdae ablate`")
    config, rest = parser.configs(arguments)
    from tsdae.ablation.report import check_report, write_report

    parser.run(lambda: (check_report if config.check else write_report)(Path(rest.folder)))


COMMANDS: dict[str, Command] = {
    command.__name__: command
    for command in (train, prepare, pretrain, evaluate, encode, reconstruct, neighbours, ablate, report)
}


def main(arguments: list[str] | None = None) -> None:
    """``tsdae COMMAND ...``. Exits with 2 on an unknown command."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        lines = (f"  {name:<13}{_first_sentence(command)}" for name, command in COMMANDS.items())
        print("usage: tsdae COMMAND [flags]; tsdae COMMAND --help lists the flags\n", *lines, sep="\n")
    elif name in COMMANDS:
        COMMANDS[name](rest)
    else:
        hint = did_you_mean(name, list(COMMANDS)) or f"there are {', '.join(COMMANDS)}"
        sys.stderr.write(f"tsdae: error: unknown command {name}; {hint}\n")
        sys.exit(2)


def _parser(command: Command, *configs: type) -> Parser:
    return Parser(*configs, description=command.__doc__, prog=f"tsdae {command.__name__}")


def _first_sentence(command: Command) -> str:
    return (command.__doc__ or "").strip().split(". ")[0].split("\n")[0].rstrip(".")
