"""Show what a sentence vector holds: sentences are noised, encoded, and written again by the decoder.

# B sentences, T packed tokens, S target tokens of one sentence
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tsdae.autoencoder import TSDAE
from tsdae.commands.settings import ReconstructConfig
from tsdae.config import DataConfig, MethodConfig
from tsdae.dataset import DenoisingDataset, check_lengths_and_words, find_noise
from tsdae.encoder import SentenceEncoder, evaluating
from tsdae.hub.model_folder import encoder_folder, run_folder
from tsdae.noise import NOISES
from tsdae.objectives import OBJECTIVES
from tsdae.packing import Packed
from tsdae.run.resume import fits
from tsdae.text.corpus import is_corpus
from tsdae.text.preparation import open_prepared
from tsdae.text.tokenization import decoded
from tsdae.text.word_boundaries import AUTO, CHOICES
from tsdae.utils.device import choose_device
from tsdae.utils.files import read_json
from tsdae.utils.progress import print_note
from tsdae.utils.rng import keyed

RANDOM = 0x2A4D  # a word in the key of the random tokens
DEFAULTS = {"noise": MethodConfig.noise, "noise_ratio": MethodConfig.noise_ratio}
DEFAULTS |= {"words": AUTO, "max_length": DataConfig.max_length}
TRAINS_DECODER = {"tsdae", "tsdae_mlm"}  # of the built-in objectives
BUILT_IN = {"noise": tuple(NOISES), "words": CHOICES}  # any other value names code


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


def show(name: str, sentences: Sequence[str], config: ReconstructConfig) -> None:
    """Print for each sentence what the encoder reads, what the decoder writes from the vector, and the loss.

    name: a run folder (or its best/), or a model without a decoder, which then gets a new one.
    """
    blank = [number for number, sentence in enumerate(sentences, 1) if not sentence.strip()]
    if blank:
        raise ValueError(f"sentence {blank[0]} is empty")
    device = choose_device(config.device)
    stored = settings_of_run(run_folder(name))
    given = (setting_of(setting, getattr(config, setting), stored) for setting in DEFAULTS)
    noise, noise_ratio, words, max_length = given
    find_noise(noise)
    check_lengths_and_words(max_length, words)
    model = load_model(name, config.pooling, config.seed).to(device)
    if untrained := untrained_decoder(name, stored):
        print_note(untrained)
    max_length = min(max_length, model.encoder.bert.config.longest_sentence)
    dataset = DenoisingDataset(sentences, model.encoder.tokenizer, noise, noise_ratio, config.seed, max_length, words)
    if dataset.corpus.without_words:
        raise ValueError("a sentence has no words: it tokenises to nothing")
    print(f"noise: {noise}, ratio {noise_ratio:g}. Loss: nats per target token, with the clean prefix as decoder input")
    written = set()
    for row, sentence in enumerate(sentences):
        print(f"\n{sentence}")
        for number, rebuilt in enumerate(rebuild(model, dataset, row, config.noisings)):
            print(f"  {f'noisy {number}' if number else 'clean':9}         {rebuilt.read}".rstrip())
            written.add(rebuilt.written)
            print(f"    -> loss {rebuilt.loss_S.mean():6.2f}  {rebuilt.written}".rstrip())

    has_decoder = (run_folder(name) / "decoder.safetensors").is_file()  # of a new one it has been said
    if has_decoder and written == {of_random_tokens(model, dataset)}:
        print_note(
            "the decoder writes the same for every vector, also for that of random tokens: the vector tells it nothing "
            "yet; train longer"
        )


def of_random_tokens(model: TSDAE, dataset: DenoisingDataset) -> str:
    """Return what the decoder writes from the vector of random ordinary tokens in place of the first sentence's."""
    clean = dataset.noised(np.array([0]), np.array([0]))[1]
    ids = next(clean.sentences())
    tail, ordinary = dataset.vocabulary.tail, dataset.vocabulary.ordinary_ids
    inner = ordinary[keyed(RANDOM, np.arange(len(ids) - 1 - tail)) % np.uint64(len(ordinary))]
    packed = Packed.from_lists([[ids[0], *inner.tolist(), *ids[-tail:]]]).to(next(model.parameters()).device)
    with torch.inference_mode():
        (written,) = model.reconstruct(model.encode(packed), dataset.max_length)
    return written


def rebuild(model: TSDAE, dataset: DenoisingDataset, row: int, noisings: int) -> list[Rebuilt]:
    """Rebuild a sentence of the dataset as it is, then under the noise of the epochs 0, 1, ... ``noisings`` - 1."""
    epoch_B = np.arange(max(1, noisings))
    noisy, targets = dataset.noised(epoch_B, np.full_like(epoch_B, row))
    target = next(targets.sentences())
    inputs = [target, *noisy.sentences()][: 1 + noisings]
    device = next(model.parameters()).device
    source, clean = (Packed.from_lists(lists).to(device) for lists in (inputs, [target] * len(inputs)))
    with evaluating(model):
        sentence_BD = model.encode(source)
        loss_T = model.token_loss(model.decode(clean, sentence_BD), clean.without_first().token_ids_T)
    tokenizer, tail = model.encoder.tokenizer, model.encoder.vocabulary.tail
    tokens: list[str] = tokenizer.convert_ids_to_tokens(target[1:])
    read = [decoded(ids[1:-tail], tokenizer, skip_special_tokens=False) for ids in inputs]  # mask tokens are to be seen
    written = model.reconstruct(sentence_BD, dataset.max_length)
    loss_BS = loss_T.unflatten(0, (len(inputs), -1)).cpu().numpy()
    return [Rebuilt(read[b], written[b], tokens, loss_S) for b, loss_S in enumerate(loss_BS)]


def load_model(name: str, pooling: str | None = None, seed: int = 0) -> TSDAE:
    """Load encoder and decoder of a run folder; where there is no decoder, make a new one and say so."""
    if (run_folder(name) / "decoder.safetensors").is_file():
        model = TSDAE.from_pretrained(run_folder(name))
        model.encoder.pooling = pooling or model.encoder.pooling
        return model
    encoder = SentenceEncoder.from_pretrained(encoder_folder(name), pooling)
    print_note(f"{name} has no decoder.safetensors: its decoder is new and untrained")
    return TSDAE(encoder, seed=seed).eval()


def settings_of_run(folder: Path) -> dict[str, Any]:
    """Read config.json of a run, or of the run whose best/ this is; empty if it is no run."""
    is_run = folder.name != "best" or (folder / "config.json").is_file()
    path = (folder if is_run else folder.parent) / "config.json"
    settings: dict[str, Any] = read_json(path) if path.is_file() else {}
    return settings if "learning_rate" in settings else {}


def untrained_decoder(name: str, stored: dict[str, Any]) -> str | None:
    """Return why the decoder of a run is untrained, by the settings of the run; None if it was trained."""
    objective = stored.get("objective", "tsdae")
    if not isinstance(objective, str) or objective not in OBJECTIVES.keys() - TRAINS_DECODER:
        return None
    return f"{name} was trained by --objective {objective}; its decoder is untrained"


def setting_of(name: str, given: Any, stored: dict[str, Any]) -> Any:
    """Return a setting: what is given, else the run's (of words, its prepared corpus's), else the default.

    Code that a run names is not run: it may be a stranger's.
    """
    if given is not None:
        return given
    value = stored.get(name)
    if name == "words" and value is None and is_corpus(corpus := Path(str(stored.get("corpus")))):
        value = open_prepared(str(corpus))[0].words
    if value is None:
        return DEFAULTS[name]
    if name in BUILT_IN and value not in BUILT_IN[name]:  # whatever the file says; it may be no text at all
        raise ValueError(f"the run's --{name} is {value!r}, which is code and runs only if you name it: give --{name}")
    if not fits(value, type(DEFAULTS[name])):
        raise ValueError(f"the run's {name} is {value!r}, which is not valid; was its config.json edited?")
    return value
