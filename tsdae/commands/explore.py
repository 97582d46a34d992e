"""Show a run in the browser, or as one static page: what a sentence vector holds, before and after training."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tsdae.commands.encode import check_writable
from tsdae.commands.neighbours import distinct_sentences, drawn
from tsdae.commands.reconstruct import load_model, setting_of, settings_of_run, untrained_decoder
from tsdae.commands.settings import STATIC_SENTENCES, ExploreConfig
from tsdae.commands.train import sample_sentences
from tsdae.encoder import SentenceEncoder
from tsdae.evaluation.pairs import load_stsb
from tsdae.explore.pages import HOST, serve, write_page
from tsdae.explore.views import NEIGHBOURS, Explorer, Side
from tsdae.hub.model_folder import encoder_folder, run_folder
from tsdae.run.folder import newest_run
from tsdae.text.corpus import is_corpus
from tsdae.text.preparation import open_prepared
from tsdae.text.tokenization import decoded
from tsdae.utils.device import choose_device
from tsdae.utils.imports import names_function

READ = 100_000  # sentences of a text, among which those to show are drawn
TEXTS, STARTS = 0x9E45, 0x9E4E  # words in the keys of what is drawn
EASY = range(6, 13)  # words of a sentence to start with


def explore(run: str | None, config: ExploreConfig) -> None:
    """Serve the page of a run until Ctrl-C, or write ``config.static``.

    run: a run folder (or its best/); None: the newest of runs/.
    ValueError, before any model is read: a port in use, no gradio, a file that cannot be written, a start or a text
    that is not known.
    """
    if config.static is not None:
        check_writable(Path(config.static), "--static")
    else:
        check_can_serve(config.port)
    name = run or str(newest_run())
    explorer, ratio = load_explorer(name, config)
    starts = config.sentence or easy_sentences(explorer.texts)
    if config.static is not None:
        write_page(Path(config.static), explorer, starts, ratio)
        print(f"wrote {config.static}: {Path(config.static).stat().st_size / 1000:.0f} kB, needs no server")
    else:
        serve(explorer, starts, ratio, config.port)


def check_can_serve(port: int) -> None:
    """Raise ValueError if gradio is not installed, or if another program has the port."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the page needs gradio: python -m pip install gradio; --static needs nothing")
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((HOST, port))
        except OSError as error:
            raise ValueError(f"port {port} cannot be used ({error.strerror}); choose another: --port N") from error


def load_explorer(name: str, config: ExploreConfig) -> tuple[Explorer, float]:
    """Load a run, the model from which it started, and its text; also return the run's deletion ratio."""
    stored, device = settings_of_run(run_folder(name)), choose_device(config.device)
    before = config.before or stored.get("model")
    if not isinstance(before, str):
        raise ValueError(
            f"{name} has no config.json of a run, so the model it started from is unknown; give it with --before"
        )
    words, max_length = setting_of("words", config.words, stored), setting_of("max_length", None, stored)
    ratio = setting_of("noise_ratio", None, stored)
    has_decoder = (run_folder(name) / "decoder.safetensors").is_file()
    untrained = untrained_decoder(name, stored) if has_decoder else f"{name} has no decoder.safetensors"
    with or_by("--before", config.before):
        start = SentenceEncoder.from_pretrained(encoder_folder(before), stored.get("pooling")).to(device)
    model = load_model(name).to(device)
    with or_by("--corpus", config.corpus):
        texts = texts_of_run(config, stored, model.encoder.tokenizer)
    if len(texts) <= NEIGHBOURS:
        raise ValueError(f"the text needs at least {NEIGHBOURS + 1} different sentences; there are {len(texts)}")
    sides = (Side(f"before: {before}", start, texts), Side(f"after: {name}", model.encoder, texts))
    return Explorer(texts, *sides, model, words, max_length, untrained), ratio


@contextlib.contextmanager
def or_by(flag: str, given: str | None) -> Iterator[None]:
    """Let an error about what the run's settings name say by which flag another can be given, if none was."""
    try:
        yield
    except ValueError as error:
        if given is not None:
            raise
        raise ValueError(f"{error}; give another with {flag}") from error


def texts_of_run(config: ExploreConfig, stored: dict[str, Any], tokenizer: Any) -> list[str]:
    """Draw ``config.limit`` different sentences of the text that is given, else of the run's. ValueError if unknown."""
    if config.corpus is not None:
        texts = distinct_sentences(config.corpus, config.column, READ)
    elif (corpus := stored.get("corpus")) is None:
        texts = sample_sentences(load_stsb())
    elif corpus == "-":
        raise ValueError("the run's text came from standard input")
    elif is_corpus(Path(str(corpus))):
        prepared = open_prepared(str(corpus))[0]
        rows = drawn(len(prepared), config.limit, TEXTS)
        texts = [decoded(ids, tokenizer) for ids in prepared.rows(rows)[0].sentences()]
    else:
        column, split = (str(stored[key]) if stored.get(key) else None for key in ("column", "sentences"))
        if split and not split.startswith("icu:") and names_function(split):
            raise ValueError(f"the run's text was split by {split}, which is code")
        texts = distinct_sentences(str(corpus), column, READ, split)
    texts = list(dict.fromkeys(texts))
    return [texts[row] for row in drawn(len(texts), config.limit, TEXTS)]


def easy_sentences(texts: list[str]) -> list[str]:
    """Draw the sentences to start with, of 6 to 12 words where there are enough."""
    easy = [text for text in texts if len(text.split()) in EASY]
    easy = easy if len(easy) >= STATIC_SENTENCES else texts
    return [easy[row] for row in drawn(len(easy), STATIC_SENTENCES, STARTS)]
