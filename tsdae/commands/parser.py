"""The command line: flags made from dataclasses, one-line errors, exit codes."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import itertools
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from tsdae.utils.checks import choices_of, did_you_mean

# PyTorch is imported by `Parser.run` alone, so that --help and mistyped flags are answered at once.
YES, NO = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")


@contextlib.contextmanager
def ctrl_c_ends() -> Iterator[None]:
    """End what is interrupted in one line and exit code 130, the imports of a command too: they take seconds."""
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: nothing more was written\n")
        sys.exit(130)


class Parser(argparse.ArgumentParser):
    """Makes a flag of every field of some dataclasses, and fills the classes.

        parser = Parser(DataConfig, TrainConfig, description="Train.")
        data, config = parser.configs(["--corpus", "text.txt", "--steps", "10"])

    A field's type says how it is given: ``Literal`` as one of its values, ``list`` as several, ``bool`` as --x (and
    --no-x where it is True by default), ``X | None`` as X. Its help is ``metadata["help"]``. The flags of a class and
    of each class that it inherits from are a group, with the first sentence of that class as the heading. Underscores
    in flags are understood, and not shown.
    """

    def __init__(self, *settings: type, description: str | None, prog: str | None = None) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)
        self.settings = settings
        self.given: set[str] = set()  # after `configs`, the fields that were given on the command line
        for config in settings:
            hints, fields = get_type_hints(config), dataclasses.fields(config)
            for owner in config.__mro__[:-1]:
                group = self.add_argument_group((owner.__doc__ or "").partition(".")[0])
                for field in fields:
                    if field.name in vars(owner)["__annotations__"]:
                        _add_flag(group, field, hints[field.name])

    def configs(self, arguments: list[str] | None = None) -> tuple[Any, ...]:
        """Return the filled dataclasses, and a namespace if the parser has further arguments. Exits with 2 on an error.

        arguments: default ``sys.argv[1:]``.
        """
        self.usage = " ".join(["%(prog)s [flags]", *map(_shown, filter(lambda action: action.required, self._actions))])
        if isinstance(sys.stdout, io.TextIOWrapper):  # a letter that it cannot write must not cost the results
            sys.stdout.reconfigure(errors="backslashreplace")
        self._look_for_typos(sys.argv[1:] if arguments is None else arguments)
        parsed, unknown = self.parse_known_args(arguments)
        if unknown:
            self.error(f"unknown argument {unknown[0]}; see --help. Put a pattern such as '*.txt' in quotes")
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
        """Name a mistyped flag, before argparse asks for the required one that it stands for."""
        shown = [flag for action in self._actions for flag in action.option_strings]
        for argument in itertools.takewhile(lambda argument: argument != "--", arguments):
            flag = argument.split("=")[0]
            if re.fullmatch(r"--?[A-Za-z][\w-]*", flag) and flag not in self._option_string_actions:
                self.error(f"unknown argument {flag}; {did_you_mean(flag, shown) or 'see --help'}")

    def error(self, message: str) -> NoReturn:
        """Print one line to stderr and exit with 2."""
        rank = int(os.environ.get("RANK", "0"))  # torchrun's; `distributed` would import PyTorch
        process = f" (process {rank})" if rank else ""
        sys.stderr.write(f"{self.prog}: error{process}: {' '.join(message.split())}\n")
        sys.exit(2)

    @ctrl_c_ends()
    def run(self, command: Callable[[], object]) -> None:
        """Call ``command``; an error of the user's ends in one line and exit code 2, a signal in 128 + its number."""
        from tsdae.run.step_metrics import NonFiniteLoss
        from tsdae.utils import distributed
        from tsdae.utils.signals import Interrupted

        if threading.current_thread() is threading.main_thread():
            # So that what is half written is cleaned up; `train` has a way of its own.
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        try:
            command()
            sys.stdout.flush()
        except BrokenPipeError:  # `| head` has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python writes when it exits
            sys.exit(128 + signal.SIGPIPE)
        except (ValueError, OSError) as error:  # OSError: no right to read or write, a full disk
            self.error(str(error) or type(error).__name__)
        except NonFiniteLoss as error:
            sys.stderr.write(f"{self.prog}: stopped: {error}\n")
            sys.exit(1)
        except Interrupted as stop:
            sys.stderr.write(f"{stop}\n")
            stopped_by = stop.signal
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and not re.search("allocate memory|out of memory", str(error)):
                raise
            self.error(f"out of memory: {str(error) or 'nothing more could be allocated'}")
        else:
            return
        distributed.destroy_process_group()  # only here: the error has held what was trained
        sys.exit(128 + stopped_by)


def _shown(action: argparse.Action) -> str:
    """Return how an argument is given, as the usage line shows it."""
    name = str(action.metavar or action.dest.upper())
    return " ".join([*action.option_strings, f"{name} ..." if action.nargs == "+" else name])


def _add_flag(group: argparse._ArgumentGroup, field: dataclasses.Field[Any], hint: Any) -> None:
    """Add the flag of one field. One that is not given does not come out of the parser: the class has its default."""
    if get_origin(hint) in (Union, UnionType):
        (hint,) = set(get_args(hint)) - {NoneType}
    kind: dict[str, Any] = {"type": hint, "metavar": {int: "N", float: "X"}.get(hint)}
    if get_origin(hint) is Literal:
        kind = {"choices": get_args(hint)}
    elif get_origin(hint) is list:
        choices = choices_of(hint)
        kind = {"choices": choices, "nargs": "+"} if choices else {"type": get_args(hint)[0], "nargs": "+"}
    elif hint is bool:
        kind = {"type": _yes_or_no, "nargs": "?", "const": True, "metavar": "true|false"}
    text, default = field.metadata["help"], field.default
    flags = [(f"--{field.name}", text, kind | {"required": default is dataclasses.MISSING})]
    if default is True:
        flags.append((f"--no_{field.name}", f"do not {text.partition(' (')[0]}", {"action": "store_false"}))
    elif default not in (None, dataclasses.MISSING) and hint is not bool:
        shown = f"default: {field.metadata.get('shown') or (f'{default:g}' if hint is float else default)})"
        text = f"{text[:-1]}; {shown}" if text.endswith(")") else f"{text} ({shown}"
        flags = [(f"--{field.name}", text, kind)]
    for flag, text, kind in flags:
        shown = flag.replace("_", "-")
        action = group.add_argument(shown, flag, dest=field.name, default=argparse.SUPPRESS, help=text, **kind)
        action.option_strings = [shown]


def _yes_or_no(text: str) -> bool:
    if text.lower() not in YES + NO:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false; write a file or folder before the flag")
    return text.lower() in YES
