"""Text made ready for training: read, some sentences held out, the rest tokenised; on disk where it is asked for."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tsdae.commands.begun import WHOLE, check_part, lock_of, part_of, unfinished
from tsdae.config import PrepareConfig, TextConfig
from tsdae.hub.model_folder import load_tokenizer, model_folder, read_sentence_settings
from tsdae.text.building import APART, WORDLESS, Counts, Store, Work, collect, hashes_of
from tsdae.text.cleaning import Cleaning
from tsdae.text.corpus import HELDOUT, REPORT, Corpus, check_corpus_output, in_folder, in_memory
from tsdae.text.formats import TABLES, check_file, suffix_of
from tsdae.text.reading import (
    Texts,
    check_source,
    cleaning_for,
    files_of,
    left_out,
    limit_for,
    load_sentences,
    nothing_left,
    open_texts,
    what_was_read,
)
from tsdae.text.tokenization import add_words, fingerprint_of, vocabulary_of
from tsdae.text.word_boundaries import AUTO, Words
from tsdae.utils import distributed
from tsdae.utils.files import remove, replace_folder, write_json
from tsdae.utils.imports import file_of
from tsdae.utils.progress import print_note, progress_bar
from tsdae.utils.rng import keyed

HELDOUT_LARGEST, HELDOUT_SHARE = 1000, 0.1
SHUFFLED = 0x5F1E  # a word in the key that draws an order
LENGTHS = (8, 16, 32, 64, 128)  # tokens: where the bars of the report's histogram end


def check_text(source: str, text: TextConfig) -> None:
    """ValueError for what can be known to fail before anything is read."""
    check_source(source, text.limit)
    _cleaning(source, text)
    Words(text.words or AUTO)
    check_heldout(text.heldout)


def _cleaning(source: str, text: TextConfig) -> Cleaning:
    return cleaning_for(source, text.sentences, text.min_characters, text.max_characters, text.min_letters)


def check_heldout(heldout: str | None) -> None:
    """ValueError unless it is None, a number or a file."""
    if heldout is not None and _names_file(heldout):
        check_file(Path(heldout))


def _names_file(heldout: str) -> bool:
    return not heldout.isdecimal()


def _read_apart(text: TextConfig) -> list[str] | None:
    """The sentences of the file of held-out sentences; None: a number of the text's own are held out."""
    if text.heldout is None or not _names_file(text.heldout):
        return None
    column = text.column if suffix_of(Path(text.heldout)) in TABLES else None
    return load_sentences(text.heldout, column, notes=print_note)


def sentences_of(source: str, text: TextConfig, outside: Sequence[Path] = ()) -> Iterator[str]:
    """The sentences of ``source``, cleaned and limited as ``text`` says, without holding more than are drawn.

    Repeated ones too, unless --shuffle draws them. outside: see `files_of`.
    """
    texts, cleaning = open_texts(source, text.column, outside), _cleaning(source, text)
    chunks = (cleaning(chunk)[0] for chunk in iter(texts.take, []))
    limit = limit_for(source, text.limit)
    if text.shuffle and limit is not None:
        return iter(_drawn(chunks, limit))
    return itertools.islice(itertools.chain.from_iterable(chunks), limit)


def _drawn(chunks: Iterable[list[str]], limit: int) -> list[str]:
    """Those that `_divide` draws where none is repeated and no file holds sentences out."""
    drawn: dict[int, str] = {}
    for chunk in chunks:
        drawn.update(zip(keyed(SHUFFLED, hashes_of(chunk)).tolist(), chunk, strict=True))
        if len(drawn) > 2 * limit:
            drawn = dict(sorted(drawn.items())[:limit])
    return [sentence for _, sentence in sorted(drawn.items())[:limit]]


def build_corpora(texts: Texts, source: str, text: TextConfig, tokenizer: Any) -> tuple[Corpus, Corpus | None]:
    """Tokenises what is chosen of the texts, in memory: (to train on, held out or None).

    source: what the texts are called in notes; empty: they are sentences already, and spoken of elsewhere.
    """
    work = Work(tokenizer, text.words or AUTO, _cleaning(source, text) if source else None)
    store, apart = Store(), _read_apart(text)
    counts = _gather(texts, source, text, apart, work, store, Counts(), default_workers())
    return _divide(Corpus.of(store, counts, work), store.column("hashes"), source, text, apart, work)


def default_workers() -> int:
    """The cores that this process may use, shared with the other processes of a run."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // distributed.count())


def _gather(
    texts: Texts,
    source: str,
    text: TextConfig,
    apart: list[str] | None,
    work: Work,
    store: Store,
    counts: Counts,
    workers: int,
    save: Callable[[Counts], None] = lambda counts: None,
) -> Counts:
    """Fills the store with what is kept of the texts, with a bar, and a note on what was left out."""
    limit = limit_for(source, text.limit)
    size = texts.meter.size
    bar = progress_bar(size, "preparing", "B" if size else " sentences", scaled=True, delay=1)

    def after_piece(counts: Counts) -> None:
        bar.set_postfix_str(f"{counts.rows:,} sentences", refresh=False)
        bar.update((texts.meter.done if size else counts.rows) - bar.n)
        save(counts)

    with bar:
        counts = collect(
            texts,
            work,
            store,
            counts,
            limit=None if text.shuffle else limit,
            keep_repeated=text.keep_repeated,
            apart_hashes=hashes_of(apart) if apart else None,
            workers=workers,
            after_piece=after_piece,
        )
    if not store.rows and not counts.dropped[WORDLESS]:
        if counts.dropped[APART]:
            raise ValueError(f"all sentences of the corpus are held out ({left_out(counts.dropped)})")
        raise nothing_left(source, counts.dropped)
    if source:
        print_note(what_was_read(source, store.rows, limit, counts.dropped))
    return counts


def _divide(
    whole: Corpus,
    hash_R: np.ndarray,
    source: str,
    text: TextConfig,
    apart: list[str] | None,
    work: Work,
    new: Callable[[str, int], np.ndarray] = in_memory,
) -> tuple[Corpus, Corpus | None]:
    """(to train on, held out or None). new: makes the arrays of the first."""
    rows = None
    if text.shuffle:
        keys = (hash_R, np.arange(len(hash_R))) if text.keep_repeated else (hash_R,)  # equal ones are not neighbours
        rows = np.argsort(keyed(SHUFFLED, *keys), kind="stable")[: limit_for(source, text.limit)]
        hash_R = hash_R[rows]
    heldout: Corpus | None
    if apart is not None:
        training = np.arange(len(hash_R))
        try:
            heldout = Corpus.build(apart, work.tokenizer, work.words)
        except ValueError as error:
            raise ValueError(f"--heldout {text.heldout}: {error}") from error
    else:
        training, held_out = split_heldout(hash_R, None if text.heldout is None else int(text.heldout))
        heldout = whole.take(held_out if rows is None else rows[held_out]) if len(held_out) else None
    return whole.take(training if rows is None else rows[training], new), heldout


def split_heldout(hash_R: np.ndarray, wanted: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(training, held-out) rows, chosen by the hashes of the text, so that equal sentences stay on one side.

    wanted: how many distinct sentences are held out, those of the smallest hashes, each once; None: 1,000 or 10 % of
    them, whichever is less.
    """
    distinct = np.sort(hash_R)  # np.unique without an index is a table of its own, five times as large
    distinct = distinct[np.append(True, distinct[1:] != distinct[:-1])]
    if wanted is None:
        wanted = min(HELDOUT_LARGEST, int(HELDOUT_SHARE * len(distinct)))
    if wanted >= len(distinct):
        raise ValueError(f"--heldout {wanted} leaves nothing of {len(distinct)} distinct sentences to train on")
    border = distinct[wanted]
    held_out = np.flatnonzero(hash_R < border)
    each_once = held_out[np.unique(hash_R[held_out], return_index=True)[1]]
    return np.flatnonzero(hash_R >= border), each_once


def prepare(source: str, config: PrepareConfig, outside: Sequence[Path] = ()) -> None:
    """Tokenises ``source`` into the folder ``config.output``, which appears only when it is complete.

    What was done before a stop lies beside it in OUTPUT.part, and the same call goes on from there.
    outside: files and folders that a pattern does not stand for, beside what is about to be written.
    """
    distributed.check_alone("prepare.py")
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

    work = Work(tokenizer, config.words or AUTO, _cleaning(source, config))
    workers = config.workers or default_workers()
    outside = (*outside, output, part_of(output), lock_of(output))
    files = [*_files(source, outside), *_files_named(config)]
    with unfinished(output, source, {"tokenizer": fingerprint_of(tokenizer)} | config.of_text, files) as begun:
        texts = open_texts(source, config.column, outside)
        apart = _read_apart(config)
        counts = _gather(texts, source, config, apart, work, begun.store, begun.counts, workers, begun.save)
        staged = begun.folder / WHOLE
        remove(staged)
        staged.mkdir()
        whole = Corpus.of(begun.store, counts, work)
        hash_R = begun.store.column("hashes")
        training, heldout = _divide(whole, hash_R, source, config, apart, work, in_folder(staged))
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
    heldout = Path(text.heldout) if text.heldout is not None and _names_file(text.heldout) else None
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


def open_prepared(folder: str | Path) -> tuple[Corpus, Corpus | None]:
    """What `prepare` wrote: (to train on, held out or None), mapped."""
    corpus = Corpus.open(folder)
    held_out = corpus.made_from.get("heldout_sentences", 0)
    heldout = Corpus.open(Path(folder) / HELDOUT) if held_out else None
    if heldout is not None and len(heldout) != held_out:
        raise ValueError(
            f"{folder} is damaged: {HELDOUT}/ holds {len(heldout):,} sentences, and {held_out:,} were held out; "
            "prepare it again"
        )
    return corpus, heldout
