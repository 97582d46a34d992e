"""The command line: flags made from dataclasses, one-line errors, exit codes."""

from __future__ import annotations

import argparse
import copy
import difflib
import itertools
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from transformers import HfArgumentParser

from tsdae.run.step_metrics import NonFiniteLoss
from tsdae.utils import distributed
from tsdae.utils.signals import Interrupted


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Appends the default, unless there is none or the text itself says what happens without the flag."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        says_so = action.default in (None, False) or "default" in text or isinstance(action, argparse._StoreFalseAction)
        return text if says_so else super()._get_help_string(action)


class Parser(HfArgumentParser):
    """Flags from the fields of dataclasses; an unknown flag gets the nearest known one suggested."""

    def __init__(self, *configs: Any, description: str) -> None:
        super().__init__(configs, description=description, allow_abbrev=False, formatter_class=HelpFormatter)
        for action in self._actions:  # flags are shown with hyphens; underscores are still understood
            action.option_strings = [flag for flag in action.option_strings if "_" not in flag]
            if isinstance(action, argparse._StoreFalseAction):
                action.help = f"not: {action.help}"
        self.given: set[str] = set()  # the fields that were given on the command line, by name

    @staticmethod
    def _parse_dataclass_field(parser: Any, field: Any) -> None:
        shown = copy.copy(field)  # argparse knows nothing of ranges
        shown.metadata = {name: text for name, text in field.metadata.items() if name == "help"}
        HfArgumentParser._parse_dataclass_field(parser, shown)

    def configs(self, arguments: list[str] | None = None) -> tuple[Any, ...]:
        """The filled dataclasses, and a namespace if the parser has further arguments. Exits with 2 on an error."""
        self._look_for_typos(sys.argv[1:] if arguments is None else arguments)
        try:
            *filled, rest = self.parse_args_into_dataclasses(
                arguments, return_remaining_strings=True, look_for_args_file=False
            )
        except ValueError as error:
            self.error(str(error))
        if rest:
            self.error(f"unknown argument {rest[0]}; see --help. A pattern such as '*.txt' needs its quotes")
        nothing = object()
        unset = argparse.Namespace(**{action.dest: nothing for action in self._actions})  # in place of the defaults
        self.parse_known_args(arguments, unset)
        self.given = {name for name, value in vars(unset).items() if value is not nothing}
        return tuple(filled)

    def _look_for_typos(self, arguments: list[str]) -> None:
        """Before argparse asks for what a misspelt flag was to give."""
        shown = [flag for action in self._actions for flag in action.option_strings]
        for argument in itertools.takewhile(lambda argument: argument != "--", arguments):
            flag = argument.split("=")[0]
            if flag.startswith("--") and flag not in self._option_string_actions:
                near = difflib.get_close_matches(flag, shown, n=1)
                self.error(f"unknown argument {flag}" + (f"; did you mean {near[0]}?" if near else "; see --help"))

    def error(self, message: str) -> NoReturn:
        """One line on stderr, exit code 2."""
        which = f" (process {distributed.rank()})" if distributed.rank() else ""
        sys.stderr.write(f"{self.prog}: error{which}: {' '.join(message.split())}\n")
        sys.exit(2)

    def run(self, command: Callable[[], object]) -> None:
        """Calls ``command``; what the user can mend ends in one line and exit code 2, a signal in 128 + its number."""
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
        distributed.destroy_process_group()  # only here: the error has held what was trained
        sys.exit(128 + stopped_by)
