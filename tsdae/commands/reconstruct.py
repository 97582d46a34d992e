"""What a sentence vector holds: sentences are noised, encoded, and written again by the decoder.

# B sentences, T packed tokens, S target tokens of one sentence
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from tsdae.autoencoder import TSDAE
from tsdae.commands.evaluate import encoder_folder
from tsdae.config import flag
from tsdae.dataset import DenoisingDataset, check_lengths_and_words, find_noise
from tsdae.encoder import SentenceEncoder
from tsdae.noise import NOISES
from tsdae.packing import Packed
from tsdae.run.resume import fits
from tsdae.text.corpus import is_corpus
from tsdae.text.preparation import open_prepared
from tsdae.text.tokenization import decoded
from tsdae.text.word_boundaries import AUTO, CHOICES
from tsdae.utils.device import choose_device
from tsdae.utils.files import read_json
from tsdae.utils.progress import print_note


@dataclass(frozen=True)
class ReconstructConfig:
    """Noises sentences, and shows what the decoder makes of their vectors."""

    noisings: int = flag(3, "different noisings of each sentence")
    noise: str | None = flag(
        None, "delete, mask, replace, swap, insert, or module:function; default: the run's, else delete"
    )
    noise_ratio: float | None = flag(None, "share of words to change; default: the run's, else 0.6")
    pooling: Literal["cls", "mean", "max"] | None = flag(None, "default: what the folder says")
    seed: int = flag(0, "of the noise, and of a decoder where there is none")
    words: str | None = flag(None, f"{', '.join(CHOICES)}, or module:function; default: the run's, else auto")
    max_length: int | None = flag(None, "longest sentence in tokens; default: the run's, else 75")
    device: str = flag("auto", "auto, cuda, cpu or mps")

    def __post_init__(self) -> None:
        if self.noisings < 0:
            raise ValueError(f"--noisings must not be negative, got {self.noisings}")
        if self.noise_ratio is not None and not 0.0 <= self.noise_ratio < 1.0:
            raise ValueError(f"--noise-ratio must lie in [0, 1), got {self.noise_ratio}: 0.6 changes 60 % of the words")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"--seed must lie between 0 and 2**63 - 1, got {self.seed}")


class Rebuilt(NamedTuple):
    """One input of the encoder, and what the decoder makes of its vector.

    read: what the encoder read, between its opening and closing special tokens. written: the greedy reconstruction.
    tokens: the S target tokens, those of the clean sentence but for the first.
    loss_S: - log p(x_t | x_<t, s) of each, in nats, the decoder having read the clean x_<t.
    """

    read: str
    written: str
    tokens: list[str]
    loss_S: np.ndarray


def rebuild(model: TSDAE, dataset: DenoisingDataset, row: int, noisings: int) -> list[Rebuilt]:
    """A sentence of the dataset as it is, then under the noise of the epochs 0, 1, ... ``noisings`` - 1."""
    epoch_B = np.arange(max(1, noisings))
    noisy, targets = dataset.noised(epoch_B, np.full_like(epoch_B, row))
    target = next(targets.sentences())
    inputs = [target, *noisy.sentences()][: 1 + noisings]
    device = next(model.parameters()).device
    source, clean = (Packed.from_lists(lists).to(device) for lists in (inputs, [target] * len(inputs)))
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            sentence_BD = model.encode(source)
            loss_T = model.token_loss(model.decode(clean, sentence_BD), clean.without_first().token_ids_T)
    finally:
        model.train(was_training)
    tokenizer, tail = model.encoder.tokenizer, model.encoder.vocabulary.tail
    tokens: list[str] = tokenizer.convert_ids_to_tokens(target[1:])
    read = [decoded(ids[1:-tail], tokenizer, skip_special_tokens=False) for ids in inputs]  # mask tokens are to be seen
    written = model.reconstruct(sentence_BD, dataset.max_length)
    loss_BS = loss_T.unflatten(0, (len(inputs), -1)).cpu().numpy()
    return [
        Rebuilt(*told, tokens, loss_S) for told, loss_S in zip(zip(read, written, strict=True), loss_BS, strict=True)
    ]


def show(name: str, sentences: Sequence[str], config: ReconstructConfig) -> None:
    """Prints for each sentence what the encoder reads, what the decoder writes from the vector, and the loss.

    name: a run folder (or its best/), or a model without a decoder, which then gets a new one.
    """
    blank = [number for number, sentence in enumerate(sentences, 1) if not sentence.strip()]
    if blank:
        raise ValueError(f"sentence {blank[0]} is empty")
    device = choose_device(config.device)
    stored = _settings_of_run(Path(name))
    noise, noise_ratio, words, max_length = _settings(config, stored)
    model = load_model(name, config.pooling, config.seed).to(device)
    if stored.get("objective") == "mlm":
        print_note(f"{name} was trained by masked-language modelling: its decoder is untrained")
    max_length = min(max_length, model.encoder.bert.config.longest_sentence)
    dataset = DenoisingDataset(sentences, model.encoder.tokenizer, noise, noise_ratio, config.seed, max_length, words)
    if dataset.corpus.without_words:
        raise ValueError("a sentence has no word in it: it tokenises to nothing")
    print(f"noise: {noise}, ratio {noise_ratio:g}. Loss: nats per target token, the decoder reading the clean prefix")
    for row, sentence in enumerate(sentences):
        print(f"\n{sentence}")
        for number, rebuilt in enumerate(rebuild(model, dataset, row, config.noisings)):
            print(f"  {f'noisy {number}' if number else 'clean':9}         {rebuilt.read}".rstrip())
            print(f"    -> loss {rebuilt.loss_S.mean():6.2f}  {rebuilt.written}".rstrip())


def load_model(name: str, pooling: str | None = None, seed: int = 0) -> TSDAE:
    """Encoder and decoder of a run folder; of a model without a decoder, with a new one, and a note that says so."""
    if (Path(name) / "decoder.safetensors").is_file():
        model = TSDAE.from_pretrained(name)
        model.encoder.pooling = pooling or model.encoder.pooling
        return model
    encoder = SentenceEncoder.from_pretrained(encoder_folder(name), pooling)
    print_note(f"{name} has no decoder.safetensors: its decoder is new and untrained")
    return TSDAE(encoder, seed=seed).eval()


def _settings_of_run(folder: Path) -> dict[str, Any]:
    """config.json of a run, or of the run whose best/ this is; empty if it is no run."""
    path = (folder.parent if folder.name == "best" else folder) / "config.json"
    settings: dict[str, Any] = read_json(path) if path.is_file() else {}
    return settings if "learning_rate" in settings else {}


def _settings(config: ReconstructConfig, stored: dict[str, Any]) -> tuple[str, float, str, int]:
    """Noise, ratio, words and longest sentence: what is given, else the run's, else what train.py takes."""
    chosen: dict[str, Any] = {}
    for name, fallback in (("noise", "delete"), ("noise_ratio", 0.6), ("words", AUTO), ("max_length", 75)):
        given = getattr(config, name)
        chosen[name] = _of_run(name, fallback, stored) if given is None else given
    find_noise(chosen["noise"])
    check_lengths_and_words(chosen["max_length"], chosen["words"])
    return chosen["noise"], chosen["noise_ratio"], chosen["words"], chosen["max_length"]


def _of_run(name: str, fallback: Any, stored: dict[str, Any]) -> Any:
    """A run's setting; of words, its prepared corpus's. Code that it names is not run: it may be a stranger's."""
    built_in = {"noise": list(NOISES), "words": list(CHOICES)}
    value = stored.get(name)
    if name == "words" and value is None and is_corpus(corpus := Path(str(stored.get("corpus")))):
        value = open_prepared(str(corpus))[0].words
    if value is None:
        return fallback
    if name in built_in and value not in built_in[name]:  # whatever the file says; it may be no text at all
        raise ValueError(f"the run's --{name} is {value!r}, and code is run only if you name it: give --{name}")
    if not fits(value, type(fallback)):
        raise ValueError(f"the run's {name} cannot be {value!r}; was its config.json edited?")
    return value
