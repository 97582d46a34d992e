"""Tokenise a text once, into a folder that training maps, on all cores; resume where it was stopped.

OUTPUT.part/NUMBER.npz      the rows of each chunk of texts that is done
OUTPUT.part/settings.json   which text and settings they are made from
OUTPUT.part/whole/          the corpus before it becomes OUTPUT
OUTPUT.part/complete        written just before it does: if whole/ is gone, nothing of OUTPUT.part is needed
OUTPUT.part.lock            held by the process that writes there
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shlex
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tsdae.config import PrepareConfig, TextConfig
from tsdae.hub.model_folder import load_tokenizer, model_folder, read_sentence_settings
from tsdae.text.added_tokens import add_words
from tsdae.text.building import Rows
from tsdae.text.corpus import FILES, HELDOUT, REPORT, check_corpus_output, is_corpus
from tsdae.text.preparation import build_corpora, check_text, names_file
from tsdae.text.reading import check_file, files_of, limit_for, load_sentences, open_texts
from tsdae.text.tokenization import fingerprint_of, vocabulary_of
from tsdae.utils import distributed
from tsdae.utils.files import locked, read_json, remove, replace_folder, write_json
from tsdae.utils.imports import file_of
from tsdae.utils.plural import counted
from tsdae.utils.progress import print_note
from tsdae.utils.signals import Interrupted

LENGTHS = (8, 16, 32, 64, 128)  # tokens: where the bars of the report's histogram end
SETTINGS, WHOLE, COMPLETE = "settings.json", "whole", "complete"
OURS = re.compile(rf"\d+\.(npz|part)|{SETTINGS}(\.part)?|{WHOLE}|{COMPLETE}")  # the names in OUTPUT.part
BUSY = "another process is preparing {}; wait for it, or choose another --output"
RESUMES = "; the same command resumes from there"


def part_of(output: Path) -> Path:
    """Return the folder of unfinished work."""
    return output.with_name(f"{output.name}.part")


def lock_of(output: Path) -> Path:
    """Return the file that is locked by the process that works on a corpus."""
    return output.with_name(f"{output.name}.part.lock")


def check_part(output: Path) -> None:
    """Raise ValueError if OUTPUT.part exists and is not ours, so that nothing of the user's is ever replaced."""
    folder = part_of(output)
    if folder.exists() and not (folder.is_dir() and all(OURS.fullmatch(path.name) for path in folder.iterdir())):
        raise ValueError(f"{folder} is where unfinished work is kept, but it holds other files; move them away")


def remove_leftovers(output: Path) -> None:
    """Remove what a process left beside the corpus ``output`` when it was killed at its very end."""
    if is_corpus(output) and (_leftovers(output) or lock_of(output).exists()):
        with locked(lock_of(output), BUSY.format(output)):
            for path in _leftovers(output):
                _remove(path)


def _leftovers(output: Path) -> list[Path]:
    """Return the corpora that ``output`` has replaced, and OUTPUT.part if it became ``output``."""
    part = part_of(output)
    replaced = [path for path in output.parent.glob("*.old") if path.name.startswith(f"{output.name}.")]
    numbered = [path for path in replaced if path.name[len(output.name) + 1 : -len(".old")].isdigit()]
    ours = [path for path in numbered if path.is_dir() and {inner.name for inner in path.iterdir()} <= FILES]
    names = {path.name for path in part.iterdir()} if part.is_dir() else {WHOLE}
    return ours if WHOLE in names or (names and COMPLETE not in names) else [*ours, part]


def _remove(folder: Path) -> None:
    """Remove a folder, the mark of a complete one last: this process may be killed as well."""
    for path in folder.iterdir():
        if path.name != COMPLETE:
            remove(path)
    remove(folder)


@contextlib.contextmanager
def unfinished(output: Path, source: str, settings: dict[str, Any], unknown_id: int | None) -> Iterator[Rows]:
    """Yield the rows that are done already of the corpus ``output``: none if source or settings have changed.

    They are kept after a stop and after an error that may pass (network, disk, memory), and what is raised or printed
    says how to resume. Standard input cannot be read again: nothing is kept.
    """
    folder = part_of(output)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock_of(output), BUSY.format(output)):
        before = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else None
        if before != settings or source == "-":
            if before is not None:
                print_note(f"unfinished work in {folder} was made with other settings or another text; starting over")
            remove(folder)
            folder.mkdir()
            write_json(folder / SETTINGS, settings)
        rows = Rows(unknown_id, folder)
        if rows.texts:
            print_note(f"resuming after {counted(rows.texts, 'text')}, from {folder}")
        keep = False
        try:
            yield rows
        except (KeyboardInterrupt, SystemExit) as stop:
            keep = source != "-"
            number = signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM
            raise Interrupted(number, f"stopped after {counted(rows.texts, 'text')}{RESUMES if keep else ''}") from stop
        except Exception as error:
            # Any other error is one of text, code or settings, and the same command would meet it again.
            may_pass = (
                isinstance(error, OSError | MemoryError)
                or isinstance(error.__cause__, OSError)
                or source.startswith("hub:")
            )
            keep = may_pass and source != "-" and rows.texts > 0
            if keep:
                print_note(f"finished work is kept in {folder}{RESUMES}")
            raise
        finally:
            remove(folder / WHOLE) if keep else _remove(folder)


def prepare(source: str, config: PrepareConfig, outside: Sequence[Path] = ()) -> str:
    """Tokenise ``source`` into the folder ``config.output``; return the command that trains from it.

    The folder appears only when it is complete. What was done before a stop is kept beside it in OUTPUT.part, and the
    same call resumes from there.
    outside: files and folders that a pattern does not match, beside those written here.
    """
    distributed.check_single_process("prepare")
    started = time.perf_counter()
    check_text(source, config)
    output = Path(config.output)
    check_part(output)
    remove_leftovers(output)
    check_corpus_output(output, config.overwrite)
    if config.add_tokens is not None:
        check_file(Path(config.add_tokens))
    folder = model_folder(config.model)
    settings = read_sentence_settings(folder)
    tokenizer = load_tokenizer(folder / settings.model_folder, settings.lowercase)
    vocabulary_of(tokenizer)  # refuses a tokenizer that adds no special tokens
    if config.add_tokens is not None:
        add_words(tokenizer, load_sentences(config.add_tokens))

    outside = (*outside, output, part_of(output), lock_of(output))
    text_files = [] if source == "-" or source.startswith("hub:") else files_of(source, outside)
    files = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in text_files + _files_named(config)]
    made_of = {"source": source, "tokenizer": fingerprint_of(tokenizer), "files": files} | config.of_text
    with unfinished(output, source, made_of, tokenizer.unk_token_id) as rows:
        texts = open_texts(source, config.column, outside)
        staged, complete = part_of(output) / WHOLE, part_of(output) / COMPLETE
        complete.unlink(missing_ok=True)
        remove(staged)
        staged.mkdir()
        training, heldout = build_corpora(texts, source, config, tokenizer, rows, staged, config.workers)
        held_out = len(heldout) if heldout else 0
        made_from = {"source": source, "model": config.model, "add_tokens": config.add_tokens}
        made_from |= {"heldout_sentences": held_out} | config.of_text
        corpus = dataclasses.replace(training, made_from=made_from)
        corpus.describe(staged)
        if heldout:
            dataclasses.replace(heldout, made_from=made_from).save(staged / HELDOUT)
        drawn = min(len(rows), limit_for(source, config.limit) or len(rows))
        kept = len(corpus) + (0 if names_file(config.heldout) else held_out)
        report = report_of(corpus.lengths, rows, drawn, kept)
        write_json(staged / REPORT, report)
        complete.touch()
        replace_folder(staged, output)
    remove_leftovers(output)
    for line in [*corpus.notes(), report_line(report)]:
        print_note(line)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print_note(
        f"{output}: {counted(len(corpus), 'sentence')} to train on ({len(corpus.token_ids):,} tokens), "
        f"{held_out:,} held out; {size / 1e6:,.1f} MB; {time.perf_counter() - started:,.0f} s"
    )
    command = ["tsdae", "train", "--corpus", str(output), "--model", config.model]
    command += ["--add-tokens", config.add_tokens] if config.add_tokens else []
    return shlex.join(command)


def _files_named(text: TextConfig) -> list[Path]:
    """Return the user's files beside the text on which the rows depend: held-out sentences and functions."""
    heldout = files_of(text.heldout) if names_file(text.heldout) else []
    code = [file_of(name) for name in (text.words, text.sentences) if name is not None]
    return [path for path in (*heldout, *code) if path is not None and path.is_file()]


def report_of(length_K: np.ndarray, rows: Rows, drawn: int, kept: int) -> dict[str, Any]:
    """Return what was kept of a text, and why the rest was not.

    length_K: tokens of the sentences to train on, special ones included. drawn: number of rows drawn by --limit.
    kept: number of these to train on or held out.
    """
    later = {"not drawn": len(rows) - drawn, "repeats of held-out sentences": drawn - kept}
    counts = np.histogram(length_K, [0, *(most + 1 for most in LENGTHS), np.inf])[0].tolist()
    return {
        "texts": rows.texts,
        "kept": kept,
        "left_out": dict(rows.dropped) | {reason: count for reason, count in later.items() if count},
        "tokens_at_most": dict(zip([*map(str, LENGTHS), "more"], counts, strict=True)),
        "unknown_tokens": rows.unknown / max(1, rows.tokens),
    }


def report_line(report: dict[str, Any]) -> str:
    """Return a line of the report for the user: lengths of sentences, and unknown tokens."""
    lengths = report["tokens_at_most"]
    total = max(1, sum(lengths.values()))
    shares = [f"{100 * n / total:.0f} % {most if most == 'more' else f'up to {most}'}" for most, n in lengths.items()]
    return f"tokens per sentence: {', '.join(shares)}; {100 * report['unknown_tokens']:.3g} % of all tokens are unknown"
