"""Tokenises a text once, into a folder that training maps, on all cores; goes on where it was stopped.

OUTPUT.part/COLUMN.bin    the rows so far
OUTPUT.part/state.json    how many of them count, and what they were made of
OUTPUT.part/whole/        the corpus that is about to become OUTPUT
OUTPUT.part.lock          held by the process that writes there
"""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tsdae.config import PrepareConfig, TextConfig
from tsdae.hub.model_folder import load_tokenizer, model_folder, read_sentence_settings
from tsdae.text.added_tokens import add_words
from tsdae.text.building import COLUMNS, Counts, Store, Work
from tsdae.text.corpus import HELDOUT, REPORT, Corpus, check_corpus_output, in_folder
from tsdae.text.formats import check_file
from tsdae.text.preparation import check_text, cleaning_of, default_workers, divide, gather, names_file, read_apart
from tsdae.text.reading import files_of, limit_for, load_sentences, open_texts
from tsdae.text.tokenization import fingerprint_of, vocabulary_of
from tsdae.text.word_boundaries import AUTO
from tsdae.utils import distributed
from tsdae.utils.files import locked, read_json, remove, replace_folder, write_json
from tsdae.utils.imports import file_of
from tsdae.utils.progress import print_note
from tsdae.utils.signals import Interrupted

LENGTHS = (8, 16, 32, 64, 128)  # tokens: where the bars of the report's histogram end
SAVE_EVERY = 20  # seconds
STATE, WHOLE = "state.json", "whole"
GOING_ON = "; the same command goes on from there"
OURS = {STATE, f"{STATE}.part", WHOLE, *(f"{name}.bin" for name in COLUMNS)}


@dataclass
class Begun:
    """Its rows, and a state that says how many of them count."""

    folder: Path
    made_of: dict[str, Any]
    store: Store
    counts: Counts
    written: float = field(default_factory=time.monotonic)

    def save(self, counts: Counts) -> None:
        """Remembers, and writes every 20 seconds."""
        self.counts = counts
        if time.monotonic() > self.written + SAVE_EVERY:
            self.write()

    def write(self) -> None:
        self.store.sync()
        write_json(self.folder / STATE, {"made_of": self.made_of, "counts": vars(self.counts)})
        self.written = time.monotonic()


def part_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.part")


def lock_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.part.lock")


def check_part(output: Path) -> None:
    """ValueError if OUTPUT.part is there and is not ours, so that nothing of the user's is ever replaced."""
    folder = part_of(output)
    others = not folder.is_dir() or {path.name for path in folder.iterdir()} - OURS
    if folder.exists() and others:
        raise ValueError(f"{folder} is where the work lies until it is done, and it is there; move it away")


@contextlib.contextmanager
def unfinished(output: Path, source: str, settings: dict[str, Any], files: Sequence[Path]) -> Iterator[Begun]:
    """What was begun of the corpus ``output`` with the same settings and unchanged files, or a new beginning.

    files: all that decides about the rows beside the settings: texts, held-out sentences, the user's own code.
    After a stop a state that was written stays, as after an error that may pass (network, disk), and what is raised or
    printed says how to go on.
    """
    check_part(output)
    folder = part_of(output)
    folder.parent.mkdir(parents=True, exist_ok=True)
    busy = f"another process is preparing {output}; wait for it, or choose another --output"
    with locked(lock_of(output), busy):
        made_of = {"source": source} | settings
        made_of |= {"files": [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]}
        with _opened(folder, made_of) as begun:
            yield begun


@contextlib.contextmanager
def _opened(folder: Path, made_of: dict[str, Any]) -> Iterator[Begun]:
    counts, source = Counts(), made_of["source"]
    is_stream = source == "-"
    if (folder / STATE).is_file():
        saved = read_json(folder / STATE)
        if saved.get("made_of") == made_of and not is_stream:
            counts = Counts.read(saved["counts"])
            print_note(f"going on after {counts.texts:,} texts, from {folder}")
        else:
            print_note(f"{folder} was begun with other settings or another text: beginning again")
    if not counts.texts:
        remove(folder)
        folder.mkdir()
    begun = Begun(folder, made_of, Store(folder, counts.rows, counts.tokens), counts)
    finished = False
    try:
        yield begun
        finished = True
    except (KeyboardInterrupt, SystemExit) as stop:
        if not is_stream:
            begun.write()
        number = signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM
        going_on = "" if is_stream else GOING_ON
        raise Interrupted(number, f"stopped after {begun.counts.texts:,} texts{going_on}") from stop
    except Exception as error:
        may_pass = isinstance(error, OSError) or isinstance(error.__cause__, OSError) or source.startswith("hub:")
        finished = not may_pass  # else it is wrong in text, code or settings, and the same command would meet it again
        if may_pass and (folder / STATE).is_file() and not is_stream:
            print_note(f"what was done before is kept in {folder}{GOING_ON}")
        raise
    finally:
        begun.store.close()
        if finished or is_stream or not (folder / STATE).is_file():  # without a state there is nothing to go on from
            remove(folder)


def prepare(source: str, config: PrepareConfig, outside: Sequence[Path] = ()) -> None:
    """Tokenises ``source`` into the folder ``config.output``, which appears only when it is complete.

    What was done before a stop lies beside it in OUTPUT.part, and the same call goes on from there.
    outside: files and folders that a pattern does not stand for, beside what is about to be written.
    """
    distributed.check_single_process("prepare.py")
    started = time.perf_counter()
    check_text(source, config)
    output = Path(config.output)
    check_corpus_output(output, config.overwrite)
    check_part(output)
    if config.add_tokens is not None:
        check_file(Path(config.add_tokens))
    folder = model_folder(config.model)
    settings = read_sentence_settings(folder)
    tokenizer = load_tokenizer(folder / settings.model_folder, settings.lowercase)
    vocabulary_of(tokenizer)  # refuses a tokenizer that adds no special tokens
    if config.add_tokens is not None:
        add_words(tokenizer, load_sentences(config.add_tokens))

    work = Work(tokenizer, config.words or AUTO, cleaning_of(source, config))
    workers = config.workers or default_workers()
    outside = (*outside, output, part_of(output), lock_of(output))
    files = [*_files(source, outside), *_files_named(config)]
    with unfinished(output, source, {"tokenizer": fingerprint_of(tokenizer)} | config.of_text, files) as begun:
        texts = open_texts(source, config.column, outside)
        apart = read_apart(config)
        counts = gather(texts, source, config, apart, work, begun.store, begun.counts, workers, begun.save)
        staged = begun.folder / WHOLE
        remove(staged)
        staged.mkdir()
        whole = Corpus.of(begun.store, counts, work)
        hash_R = begun.store.column("hashes")
        training, heldout = divide(whole, hash_R, source, config, apart, work, in_folder(staged))
        held_out = len(heldout) if heldout else 0
        made_from = {"source": source, "model": config.model, "add_tokens": config.add_tokens}
        made_from |= {"heldout_sentences": held_out} | config.of_text
        corpus = dataclasses.replace(training, made_from=made_from)
        corpus.describe(staged)
        if heldout:
            dataclasses.replace(heldout, made_from=made_from).save(staged / HELDOUT)
        drawn = min(counts.rows, limit_for(source, config.limit) or counts.rows)
        report = report_of(corpus, counts, drawn, len(corpus) + (held_out if apart is None else 0))
        write_json(staged / REPORT, report)
        replace_folder(staged, output)
    for line in [*corpus.notes(), *report_lines(report)]:
        print_note(line)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print_note(
        f"{output}: {len(corpus):,} sentences to train on ({len(corpus.token_ids):,} tokens), {held_out:,} held out; "
        f"{size / 1e6:,.1f} MB; {time.perf_counter() - started:,.0f} s"
    )
    command = ["python", "scripts/train.py", "--corpus", str(output), "--model", config.model]
    command += ["--add-tokens", config.add_tokens] if config.add_tokens else []
    print(f"train from it: {shlex.join(command)}")


def _files(source: str, outside: Sequence[Path]) -> list[Path]:
    return [] if source == "-" or source.startswith("hub:") else files_of(source, outside)


def _files_named(text: TextConfig) -> list[Path]:
    """The user's files beside the text that decide what becomes of it."""
    heldout = Path(text.heldout) if text.heldout is not None and names_file(text.heldout) else None
    code = [file_of(name) for name in (text.words, text.sentences) if name is not None]
    return [path for path in (heldout, *code) if path is not None and path.is_file()]


def report_of(corpus: Corpus, counts: Counts, drawn: int, kept: int) -> dict[str, Any]:
    """What was kept of a text and why not the rest; sentences by their length in tokens, special ones included.

    drawn: of the rows, by --limit. kept: of these, to train on and to hold out.
    """
    later = {"not drawn": counts.rows - drawn, "repeats of held-out sentences": drawn - kept}
    edges = [0, *(most + 1 for most in LENGTHS), np.inf]
    sentences = np.histogram(corpus.lengths, edges)[0]
    return {
        "texts": counts.texts,
        "kept": kept,
        "left_out": dict(counts.dropped) | {reason: count for reason, count in later.items() if count},
        "tokens_at_most": {str(most): int(n) for most, n in zip([*LENGTHS, "more"], sentences, strict=True)},
        "unknown_tokens": counts.unknown / max(1, counts.ordinary),
    }


def report_lines(report: dict[str, Any]) -> list[str]:
    """The same for the eye."""
    lengths = report["tokens_at_most"]
    total = max(1, sum(lengths.values()))
    shares = [
        f"{100 * count / total:.0f} % {name if name == 'more' else f'to {name}'}" for name, count in lengths.items()
    ]
    return [f"tokens in a sentence: {', '.join(shares)}; {100 * report['unknown_tokens']:.3g} % of all are unknown"]
