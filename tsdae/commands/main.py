"""The command line: ``tsdae COMMAND`` and ``scripts/COMMAND.py`` call the function COMMAND of this file.

Its docstring is shown by --help; ``arguments`` defaults to those of the process. The code that does the work is
imported after the flags are parsed: it imports PyTorch, which takes seconds and which --help does not need.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from tsdae.commands import settings
from tsdae.commands.parser import Parser, ctrl_c_ends
from tsdae.config import AblationConfig, DataConfig, MethodConfig, PrepareConfig, TrainConfig
from tsdae.utils.checks import suggestion

Command = Callable[[list[str] | None], None]
A_MODEL = "mini (built in), run folder, model folder, or Hugging Face name"


@ctrl_c_ends()
def train(arguments: list[str] | None = None) -> None:
    """Train a sentence encoder with TSDAE. Without arguments: the built-in model mini on the sentences of STS-B."""
    parser = _parser(train, DataConfig, MethodConfig, TrainConfig)
    data, method, config = parser.configs(arguments)
    from tsdae.commands.train import train_or_resume

    parser.run(lambda: train_or_resume(data, method, config, parser.given))


@ctrl_c_ends()
def prepare(arguments: list[str] | None = None) -> None:
    """Tokenise a text once, into a folder for --corpus of `tsdae train`."""
    parser = _parser(prepare, PrepareConfig)
    parser.add_argument("corpus", metavar="CORPUS", help=settings.A_TEXT)
    config, rest = parser.configs(arguments)
    from tsdae.commands.prepare import prepare as prepare_text

    parser.run(lambda: print(f"train from it: {prepare_text(rest.corpus, config)}"))


@ctrl_c_ends()
def pretrain(arguments: list[str] | None = None) -> None:
    """Pretrain a sentence encoder from text alone: tokenizer, BERT by masked-language modelling, then TSDAE."""
    parser = _parser(pretrain, settings.PretrainConfig)
    parser.add_argument("corpus", metavar="CORPUS", help=settings.A_FILE)
    config, rest = parser.configs(arguments)
    from tsdae.commands.pretrain import pretrain as pretrain_on

    parser.run(lambda: print(f"done: {pretrain_on(rest.corpus, config)}"))


@ctrl_c_ends()
def evaluate(arguments: list[str] | None = None) -> None:
    """Compare models on STS-B or on your own --pairs: scores x 100 with intervals, differences from the first.

    With --retrieval: search in a folder in BEIR's layout, beside BM25. With --rerank: re-ranking. With
    --make-pairs: write a sheet of pairs to score by hand instead.
    """
    parser = _parser(evaluate, settings.CompareConfig, settings.SheetConfig)
    parser.add_argument("models", nargs="+", metavar="MODEL", help=A_MODEL)
    config, sheet, rest = parser.configs(arguments)
    from tsdae.commands.evaluate import compare
    from tsdae.commands.sheet import make_sheet

    parser.run(lambda: make_sheet(rest.models, sheet, config) if sheet.make_pairs else compare(rest.models, config))


@ctrl_c_ends()
def encode(arguments: list[str] | None = None) -> None:
    """Embed a text with a trained encoder: one float32 row per sentence, in input order."""
    parser = _parser(encode, settings.EncodeConfig)
    parser.add_argument("model", metavar="MODEL", help=A_MODEL)
    config, rest = parser.configs(arguments)
    from tsdae.commands.encode import encode_file

    parser.run(lambda: encode_file(rest.model, config))


@ctrl_c_ends()
def export(arguments: list[str] | None = None) -> None:
    """Write an encoder as an ONNX file, with pooling and normalisation in it, to embed sentences without PyTorch."""
    parser = _parser(export, settings.ExportConfig)
    parser.add_argument("model", metavar="MODEL", help=A_MODEL)
    config, rest = parser.configs(arguments)
    from tsdae.commands.export import export_onnx

    parser.run(lambda: export_onnx(rest.model, config))


@ctrl_c_ends()
def reconstruct(arguments: list[str] | None = None) -> None:
    """Show what a sentence vector contains: sentences are noised, encoded, and reconstructed by the decoder."""
    parser = _parser(reconstruct, settings.ReconstructConfig)
    parser.add_argument("run", metavar="RUN", help="run folder; or a model, which gets a new, untrained decoder")
    parser.add_argument("sentences", nargs="+", metavar="SENTENCE", help="sentences, each in quotes")
    config, rest = parser.configs(arguments)
    from tsdae.commands.reconstruct import show

    parser.run(lambda: show(rest.run, rest.sentences, config))


@ctrl_c_ends()
def neighbours(arguments: list[str] | None = None) -> None:
    """Show each query's nearest neighbours under two models: side by side, and how many the models share."""
    parser = _parser(neighbours, settings.NeighboursConfig)
    for model in ("before", "after"):
        parser.add_argument(model, metavar=model.upper(), help=A_MODEL)
    config, rest = parser.configs(arguments)
    from tsdae.commands.neighbours import show_neighbours

    parser.run(lambda: show_neighbours(rest.before, rest.after, config))


@ctrl_c_ends()
def explore(arguments: list[str] | None = None) -> None:
    """Explore a run in the browser: words that stay, what the decoder writes, nearest sentences, a map."""
    parser = _parser(explore, settings.ExploreConfig)
    parser.add_argument("run", nargs="?", metavar="RUN", help="run folder; default: the newest in runs/")
    config, rest = parser.configs(arguments)
    from tsdae.commands.explore import explore as explore_run

    parser.run(lambda: explore_run(rest.run, config))


@ctrl_c_ends()
def ablate(arguments: list[str] | None = None) -> None:
    """Compare settings over several seeds, paired: one training run each, and a report with intervals."""
    parser = _parser(ablate, AblationConfig, DataConfig, MethodConfig, TrainConfig)
    config, data, method, base = parser.configs(arguments)
    from tsdae.ablation.runner import ablate as ablate_in

    parser.run(lambda: ablate_in(data, method, base, config, given=parser.given))


@ctrl_c_ends()
def report(arguments: list[str] | None = None) -> None:
    """Regenerate the report of an ablation from its rows; with --check only compare report.md."""
    parser = _parser(report, settings.ReportConfig)
    parser.add_argument("folder", metavar="FOLDER", help="--output of `tsdae ablate`")
    config, rest = parser.configs(arguments)
    from tsdae.ablation.report import check_report, write_report

    parser.run(lambda: (check_report if config.check else write_report)(Path(rest.folder)))
    print(f"{Path(rest.folder) / 'report.md'} " + ("matches its rows" if config.check else "is written"))


COMMANDS: dict[str, Command] = {
    command.__name__: command
    for command in (
        train,
        prepare,
        pretrain,
        evaluate,
        encode,
        export,
        reconstruct,
        neighbours,
        explore,
        ablate,
        report,
    )
}


def main(arguments: list[str] | None = None) -> None:
    """``tsdae COMMAND ...``. Exits with 2 on an unknown command."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        lines = (f"  {name:<13}{_first_clause(command)}" for name, command in COMMANDS.items())
        print("usage: tsdae COMMAND [flags]; tsdae COMMAND --help lists the flags\n", *lines, sep="\n")
    elif name in COMMANDS:
        COMMANDS[name](rest)
    else:
        sys.stderr.write(f"tsdae: error: unknown command {name}; {suggestion(name, COMMANDS)}\n")
        sys.exit(2)


def _parser(command: Command, *configs: type) -> Parser:
    return Parser(*configs, description=command.__doc__, prog=f"tsdae {command.__name__}")


def _first_clause(command: Command) -> str:
    return re.split(r"[.:;]\s|[.]$", command.__doc__ or "")[0]
