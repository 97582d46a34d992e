"""Text made ready for training: read, some sentences held out, the rest tokenised; on disk where it is asked for."""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tsdae.corpus import HELDOUT, Corpus, check_corpus_output
from tsdae.folders import load_tokenizer, model_folder, read_sentence_settings
from tsdae.inference import resolve_model
from tsdae.progress import print_note
from tsdae.sources import check_file, check_source, load_sentences
from tsdae.tokenization import add_words, vocabulary_of
from tsdae.training import flag
from tsdae.words import AUTO, Words

ADD_TOKENS = "file of words, one a line, that become tokens of their own"
HELDOUT_LARGEST, HELDOUT_SHARE = 1000, 0.1


@dataclass(frozen=True)
class TextConfig:
    """What of a text is used, and for what: everything that is decided when it is read."""

    column: str | None = flag(None, "column of a table that holds the text")
    limit: int | None = flag(None, "use so many sentences at most; default for hub: 100,000")
    sentences: str | None = flag(None, "lines: a line is a sentence; regex: split documents; default: regex for hub:")
    min_characters: int | None = flag(None, "leave out shorter sentences; default 11 with regex, else 1")
    words: str | None = flag(
        None,
        "what a word is: auto (the tokenizer's own, and character clusters where a script writes no spaces), tokens, "
        "characters, whitespace, or module:function, a segmenter; default: auto",
    )
    heldout: str | None = flag(
        None, "sentences kept from training, a number or a file; default: 1,000 or 10 %%, whichever is less"
    )


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(TextConfig):
    """Prepares a text for training: tokenises it once, into a folder that training maps."""

    model: str = field(metadata={"help": "model folder or name on the Hugging Face hub, whose tokenizer is taken"})
    output: str = field(metadata={"help": "folder to write; give it to scripts/train.py as --corpus"})
    overwrite: bool = flag(False, "replace the prepared corpus that --output holds")
    add_tokens: str | None = flag(None, ADD_TOKENS)


def check_text(source: str, text: TextConfig) -> None:
    """ValueError for what can be known to fail before anything is read."""
    check_source(source, text.limit, text.sentences)
    Words(text.words or AUTO)
    check_heldout(text.heldout)


def check_heldout(heldout: str | None) -> None:
    """ValueError unless it is None, a number or a file."""
    if heldout is not None and not heldout.isdecimal():
        check_file(Path(heldout))


def read_text(source: str, text: TextConfig) -> list[str]:
    """The sentences of ``source``, as ``text`` says, with a note on what was left out."""
    return load_sentences(source, text.column, text.limit, text.sentences, text.min_characters, notes=print_note)


def build_corpora(sentences: list[str], text: TextConfig, tokenizer: Any) -> tuple[Corpus, Corpus | None]:
    """Tokenises what `split_heldout` makes of the sentences: (to train on, held out or None)."""
    words = text.words or AUTO
    training, apart = split_heldout(sentences, text.heldout)
    corpus = Corpus.build(training, tokenizer, words, show_progress=True)
    return corpus, Corpus.build(apart, tokenizer, words, show_progress=True) if apart else None


def split_heldout(sentences: list[str], heldout: str | None) -> tuple[list[str], list[str]]:
    """(training, held-out) sentences. Chosen by a hash of the text, so that equal sentences stay on one side.

    heldout: a number, a file, or None for 1,000 or 10 % of the distinct sentences, whichever is less.
    """
    if heldout is not None and not heldout.isdecimal():
        apart = load_sentences(heldout, notes=print_note)
    else:
        distinct = list(dict.fromkeys(sentences))
        wanted = min(HELDOUT_LARGEST, int(HELDOUT_SHARE * len(distinct))) if heldout is None else int(heldout)
        if wanted >= len(distinct):
            raise ValueError(f"--heldout {wanted} leaves nothing of {len(distinct)} distinct sentences to train on")
        apart = sorted(distinct, key=lambda text: hashlib.blake2b(text.encode("utf-8", "replace")).digest())[:wanted]
    kept_apart = set(apart)
    training = [sentence for sentence in sentences if sentence not in kept_apart]
    if not training:
        raise ValueError(f"all {len(sentences)} sentences of the corpus are held out; none is left to train on")
    return training, apart


def prepare(source: str, config: PrepareConfig) -> None:
    """Tokenises ``source`` into the folder ``config.output``, which appears only when it is complete."""
    check_text(source, config)
    output = Path(config.output)
    check_corpus_output(output, config.overwrite)
    if config.add_tokens is not None:
        check_file(Path(config.add_tokens))
    folder = model_folder(resolve_model(config.model))
    settings = read_sentence_settings(folder)
    tokenizer = load_tokenizer(folder / settings.model_folder, settings.lowercase)
    vocabulary_of(tokenizer)  # refuses a tokenizer that adds no special tokens
    if config.add_tokens is not None:
        add_words(tokenizer, load_sentences(config.add_tokens))

    corpus, heldout = build_corpora(read_text(source, config), config, tokenizer)
    held_out = len(heldout) if heldout else 0
    made_from = {"source": source, "model": config.model, "heldout_sentences": held_out}
    made_from |= {setting.name: getattr(config, setting.name) for setting in dataclasses.fields(TextConfig)}
    dataclasses.replace(corpus, made_from=made_from).write(output, heldout, config.overwrite)
    for line in corpus.notes():
        print_note(line)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print_note(
        f"{output}: {len(corpus):,} sentences to train on ({len(corpus.token_ids):,} tokens), {held_out:,} held out; "
        f"{size / 1e6:,.1f} MB"
    )
    command = ["python", "scripts/train.py", "--corpus", str(output), "--model", config.model]
    command += ["--add-tokens", config.add_tokens] if config.add_tokens else []
    print(f"train from it: {shlex.join(command)}")


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
