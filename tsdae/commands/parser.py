"""The command line: flags made from dataclasses, one-line errors, exit codes."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

# PyTorch is imported by `Parser.run` alone, so that --help and mistyped flags are answered at once.
YES, NO = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")


class Parser(argparse.ArgumentParser):
    """Makes a flag of every field of some dataclasses, a group of flags per class, and fills the classes.

        parser = Parser(DataConfig, TrainConfig, description="Train.")
        data, config = parser.configs(["--corpus", "text.txt", "--steps", "10"])

    A field's type says how it is given: ``Literal`` as one of its values, ``list`` as several, ``bool`` as --x (and
    --no-x where it is True by default), ``X | None`` as X. Its help is ``metadata["help"]``; a class's first sentence
    is the heading of its group. Underscores in flags are understood, and not shown.
    """

    def __init__(self, *settings: type, description: str | None, prog: str | None = None) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)
        self.settings = settings
        self.given: set[str] = set()  # after `configs`, the fields that were given on the command line
        for config in settings:
            group = self.add_argument_group((config.__doc__ or "").partition(".")[0])
            hints = get_type_hints(config)
            for field in dataclasses.fields(config):
                _add_flag(group, field, hints[field.name])

    def configs(self, arguments: list[str] | None = None) -> tuple[Any, ...]:
        """The filled dataclasses, and a namespace if the parser has further arguments. Exits with 2 on an error.

        arguments: default ``sys.argv[1:]``.
        """
        self._look_for_typos(sys.argv[1:] if arguments is None else arguments)
        parsed, unknown = self.parse_known_args(arguments)
        if unknown:
            self.error(f"unknown argument {unknown[0]}; see --help. A pattern such as '*.txt' needs its quotes")
        values = vars(parsed)
        self.given = set(values)
        filled = []
        for config in self.settings:
            names = {field.name for field in dataclasses.fields(config)} & values.keys()
            try:
                filled.append(config(**{name: values.pop(name) for name in names}))
            except ValueError as error:
                self.error(str(error))
        return (*filled, parsed) if values else tuple(filled)

    def _look_for_typos(self, arguments: list[str]) -> None:
        """Before argparse asks for what a misspelt flag was to give."""
        shown = [flag for action in self._actions for flag in action.option_strings]
        for argument in itertools.takewhile(lambda argument: argument != "--", arguments):
            flag = argument.split("=")[0]
            if flag.startswith("--") and flag not in self._option_string_actions:
                self.error(f"unknown argument {flag}; {did_you_mean(flag, shown) or 'see --help'}")

    def error(self, message: str) -> NoReturn:
        """One line on stderr, exit code 2."""
        rank = int(os.environ.get("RANK", "0"))  # torchrun's; `distributed` would import PyTorch
        process = f" (process {rank})" if rank else ""
        sys.stderr.write(f"{self.prog}: error{process}: {' '.join(message.split())}\n")
        sys.exit(2)

    def run(self, command: Callable[[], object]) -> None:
        """Calls ``command``; what the user can mend ends in one line and exit code 2, a signal in 128 + its number."""
        from tsdae.run.step_metrics import NonFiniteLoss
        from tsdae.utils import distributed
        from tsdae.utils.signals import Interrupted

        if threading.current_thread() is threading.main_thread():
            # So that what is half written is cleaned up; `train` has a way of its own.
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        try:
            command()
        except (ValueError, OSError) as error:  # OSError: no right to read or write, a full disk
            self.error(str(error) or type(error).__name__)
        except NonFiniteLoss as error:
            sys.stderr.write(f"{self.prog}: stopped: {error}\n")
            sys.exit(1)
        except Interrupted as stop:
            sys.stderr.write(f"{stop}\n")
            stopped_by = stop.signal
        except KeyboardInterrupt:
            sys.stderr.write("interrupted at once: nothing more was written\n")
            sys.exit(130)
        else:
            return
        distributed.leave()  # only here: the error has held what was trained
        sys.exit(128 + stopped_by)


def did_you_mean(word: str, known: list[str]) -> str | None:
    """A question for a mistyped word; None if no known one is near."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else None


def _add_flag(group: argparse._ArgumentGroup, field: dataclasses.Field[Any], hint: Any) -> None:
    """The flag of one field. One that is not given does not come out of the parser: the class has its default."""
    if get_origin(hint) in (Union, UnionType):
        (hint,) = set(get_args(hint)) - {NoneType}
    kind: dict[str, Any] = {"type": hint}
    if get_origin(hint) is Literal:
        kind = {"choices": get_args(hint)}
    elif get_origin(hint) is list:
        kind = {"type": get_args(hint)[0], "nargs": "+"}
    elif hint is bool:
        kind = {"type": _yes_or_no, "nargs": "?", "const": True}
    text = field.metadata["help"]
    flags = [(f"--{field.name}", text, kind | {"required": field.default is dataclasses.MISSING})]
    if field.default is True:
        flags.append((f"--no_{field.name}", f"not: {text}", {"action": "store_false"}))
    elif field.default not in (None, False, dataclasses.MISSING) and "default" not in text:
        flags = [(f"--{field.name}", f"{text} (default: {field.default})", kind)]
    for flag, text, kind in flags:
        shown = flag.replace("_", "-")
        action = group.add_argument(shown, flag, dest=field.name, default=argparse.SUPPRESS, help=text, **kind)
        action.option_strings = [shown]


def _yes_or_no(text: str) -> bool:
    if text.lower() not in YES + NO:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() in YES
