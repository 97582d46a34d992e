"""Embed a file; and what other commands that embed texts say and check as well."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tsdae.commands.settings import EncodeConfig
from tsdae.encoder import SentenceEncoder
from tsdae.hub.auto_encoder import Encoder
from tsdae.hub.model_folder import encoder_folder
from tsdae.text.reading import load_sentences
from tsdae.text.tokenization import token_ids
from tsdae.utils.device import choose_device
from tsdae.utils.files import atomic, check_can_write
from tsdae.utils.plural import counted
from tsdae.utils.progress import print_note


def encode_file(model: str, config: EncodeConfig) -> np.ndarray:
    """Embed ``config.input`` into ``config.output``, which appears only when it is complete.

    A blank line is a sentence too (an empty one), so that row i of the output is line i of the input.
    """
    output = Path(config.output)
    check_writable(output, "--output")
    device = choose_device(config.device)
    sentences = load_sentences(
        config.input, config.column, config.limit, sentences="lines", min_characters=0, notes=print_note
    )
    encoder = SentenceEncoder.from_pretrained(encoder_folder(model), config.pooling).to(device)
    note_truncated(sentences, encoder)
    vectors = encoder.encode(sentences, config.batch_size, show_progress=True)
    with atomic(output, unique=True) as staged, staged.open("wb") as file:
        np.save(file, vectors)
    print(f"wrote {vectors.shape[0]:,} x {vectors.shape[1]} float32 to {output}")
    return vectors


def check_writable(path: Path, flag: str) -> None:
    """Raise ValueError if no file can be written there: better known before the work than after it."""
    if path.is_dir():
        raise ValueError(f"{flag} {path} is a folder; give the name of a file")
    if not path.resolve().parent.is_dir():
        raise ValueError(f"{flag} {path}: the folder {path.resolve().parent} does not exist")
    check_can_write(path.resolve().parent, f"{flag} {path}: the folder")


def note_truncated(sentences: list[str], encoder: Encoder) -> None:
    """Print how many sentences are longer than the encoder reads."""
    # A token takes a byte at least, so only these can be too long; the rest need not be tokenised twice.
    long = [sentence for sentence in sentences if len(sentence.encode()) > encoder.max_length - 2]
    cut = int((token_ids(long, encoder.tokenizer).lengths_B > encoder.max_length).sum()) if long else 0
    if cut:
        print_note(f"{counted(cut, 'sentence')} longer than {encoder.max_length} tokens truncated")
