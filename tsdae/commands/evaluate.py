"""Using trained models: compare several on labelled pairs, embed a file.

# B sentences, L padded length, D width
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch.nn import functional as F

from tsdae.config import flag
from tsdae.encoder import SentenceEncoder
from tsdae.evaluation.pairs import (
    Pairs,
    TextPairs,
    check_labels,
    columns_without_score,
    load_pairs,
    load_stsb,
    load_text_pairs,
)
from tsdae.evaluation.retrieval import evaluate_retrieval
from tsdae.evaluation.scores import Scores, table
from tsdae.evaluation.sts import evaluate_sts
from tsdae.hub.conversion import UnsupportedArchitecture
from tsdae.hub.downloads import model_asset
from tsdae.hub.model_folder import load_tokenizer, model_folder, read_sentence_settings
from tsdae.text.reading import load_sentences
from tsdae.text.tokenization import token_ids
from tsdae.utils.device import choose_device
from tsdae.utils.files import first_line, read_json, write_json
from tsdae.utils.progress import print_note, progress_bar


class Encoder(Protocol):
    """What evaluation needs of a model."""

    pooling: str
    tokenizer: Any
    max_length: int

    def encode(self, sentences: list[str], batch_size: int = 64, *, show_progress: bool = False) -> np.ndarray: ...


def encoder_folder(name: str) -> Path:
    """The folder of a model's name or path; a run folder stands for the encoder in it."""
    folder = model_folder(name)
    if (folder / "encoder" / "config.json").is_file():
        return folder / "encoder"
    if (folder / "config.json").is_file() and "learning_rate" in read_json(folder / "config.json"):
        raise ValueError(f"{folder} is a run without a trained model (no encoder/): it was stopped before its end")
    return folder


def load_encoder(name: str, pooling: str | None = None, device: torch.device | None = None) -> Encoder:
    """A `SentenceEncoder`, or, for a family without a hand-written encoder, transformers' AutoModel behind `encode`."""
    folder = encoder_folder(name)
    try:
        return SentenceEncoder.from_pretrained(folder, pooling).to(device or "cpu").eval()
    except UnsupportedArchitecture:
        return AutoModelEncoder(folder, pooling, device or torch.device("cpu"))


def check_models(names: Sequence[str]) -> None:
    """ValueError if one of the models can be known not to be there."""
    for name in names:
        if model_asset(name) is None:
            model_folder(name)


def load_encoders(
    names: Sequence[str], pooling: str | None, device: torch.device | None = None
) -> list[tuple[str, Encoder]]:
    """All of them, before the first works for minutes: one of them may turn out to be broken."""
    check_models(names)
    return [(name, load_encoder(name, pooling, device)) for name in names]


ANY_LENGTH, USUAL_LENGTH = 10**9, 512  # tokens


class AutoModelEncoder:
    """Any encoder of transformers, for evaluation only: padded batches, the folder's own pooling."""

    def __init__(self, folder: Path, pooling: str | None, device: torch.device) -> None:
        from transformers import AutoModel
        from transformers.utils import logging as transformers_logging

        settings = read_sentence_settings(folder)
        self.pooling = pooling or settings.pooling or "cls"
        self.normalize, self.device = settings.normalize, device
        place = folder / settings.model_folder
        if read_json(place / "config.json").get("auto_map"):
            raise ValueError(f"{folder} comes with code of its own (auto_map in config.json), which is never run")
        self.tokenizer = load_tokenizer(place, settings.lowercase)
        transformers_logging.disable_progress_bar()
        verbosity = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()  # no report of unused weights; what matters is said below
        try:
            model, report = AutoModel.from_pretrained(str(place), output_loading_info=True, trust_remote_code=False)
        except Exception as error:  # transformers has many ways to refuse a folder
            raise ValueError(f"{folder} cannot be read by AutoModel: {first_line(error)}") from error
        finally:
            transformers_logging.set_verbosity(verbosity)
        missing = sorted(name for name in report["missing_keys"] if "pooler" not in name)
        if missing:  # AutoModel would go on with random numbers in their place
            raise ValueError(f"{folder}: its weights lack {', '.join(missing[:5])}" + ", ..." * (len(missing) > 5))
        self.model = model.float().to(device).eval()
        if model.config.is_encoder_decoder:
            raise ValueError(f"{folder} holds {type(model).__name__}, which is not an encoder alone")
        self.max_length = min(settings.max_length or ANY_LENGTH, self.tokenizer.model_max_length, _positions(model))
        if self.max_length == ANY_LENGTH:  # nothing says how long a sentence may be
            self.max_length = USUAL_LENGTH

    @torch.inference_mode()
    def encode(self, sentences: list[str], batch_size: int = 64, *, show_progress: bool = False) -> np.ndarray:
        """float32 [B, D], in the order given."""
        order = sorted(range(len(sentences)), key=lambda i: -len(sentences[i]))
        vectors: list[np.ndarray] = [np.empty(0)] * len(sentences)
        with progress_bar(len(order), "encoding", " sentences", show_progress) as bar:
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                features = self.tokenizer(
                    [sentences[i] for i in rows],
                    padding=True,
                    truncation=True,
                    max_length=self.max_length,
                    return_tensors="pt",
                ).to(self.device)
                hidden_BLD = self.model(**features).last_hidden_state
                real_BL1 = features["attention_mask"].bool()[:, :, None]
                if self.pooling == "cls":
                    first_B = features["attention_mask"].argmax(1)
                    sentence_BD = hidden_BLD[torch.arange(len(rows)), first_B]
                elif self.pooling == "mean":
                    sentence_BD = (hidden_BLD * real_BL1).sum(1) / real_BL1.sum(1)
                else:
                    sentence_BD = hidden_BLD.masked_fill(~real_BL1, float("-inf")).max(1).values
                if self.normalize:
                    sentence_BD = F.normalize(sentence_BD, dim=1)
                for i, vector in zip(rows, sentence_BD.float().cpu().numpy(), strict=True):
                    vectors[i] = vector
                bar.update(len(rows))
        return np.stack(vectors)


def _positions(model: Any) -> int:
    """How many tokens of a sentence have a position; some families leave those up to the padding's own unused."""
    positions = getattr(model.config, "max_position_embeddings", None) or -1
    tables = [module for name, module in model.named_modules() if name.endswith("position_embeddings")]
    paddings = [getattr(table, "padding_idx", None) for table in tables]
    unused = max((padding + 1 for padding in paddings if padding is not None), default=0)
    return positions - unused if positions > 0 else ANY_LENGTH


@dataclass(frozen=True)
class CompareConfig:
    """Scores models on STS-B, or on pairs of your own."""

    pooling: Literal["cls", "mean", "max"] | None = flag(None, "for all models; default: what each folder says")
    split: Literal["dev", "test", "both"] | None = flag(None, "of STS-B; default: both")
    stsb: str | None = flag(None, "folder with STS-B; default: cache, wheel, hub")
    pairs: str | None = flag(
        None,
        "your own pairs instead of STS-B: tsv, csv, jsonl or parquet with sentence1, sentence2, score; without score: "
        "sentence1 has to find its sentence2",
    )
    json: str | None = flag(None, "write the figures to this file as well")
    device: str = flag("auto", "auto, cuda, cpu or mps")

    def __post_init__(self) -> None:
        for name in ("split", "stsb"):
            if self.pairs is not None and getattr(self, name) is not None:
                raise ValueError(f"--{name} is about STS-B, and --pairs {self.pairs} takes its place")


def compare(models: list[str], config: CompareConfig) -> list[tuple[str, dict[str, Scores]]]:
    """Prints a table row per model and the differences from the first; writes the figures to ``config.json``."""
    if config.json is not None:
        check_writable(Path(config.json), "--json")
    device = choose_device(config.device)
    # What can be known to fail comes first: the user's own files, then names, then what is downloaded.
    splits = _splits(config) if config.pairs or config.stsb else None
    check_models(models)
    splits = splits or _splits(config)
    rows: list[tuple[str, dict[str, Scores]]] = []
    entries = []
    for name, encoder in load_encoders(models, config.pooling, device):
        scores: dict[str, Scores] = {}
        for split, pairs in splits.items():
            print(f"{name} ({encoder.pooling}): {split}, {len(pairs):,} pairs", file=sys.stderr)
            note_truncated(pairs.first + pairs.second, encoder)
            if isinstance(pairs, TextPairs):
                scores[split] = evaluate_retrieval(functools.partial(encoder.encode, show_progress=True), pairs)
            else:
                scores[split] = score(encoder, pairs)
        rows.append((f"{name} ({encoder.pooling})", scores))
        entries.append(entry(name, encoder.pooling, scores))
        if len(rows) > 1:
            from_first = {split: scores[split].minus(rows[0][1][split]).row() for split in scores}
            entries[-1]["difference"] = {"from": models[0]} | from_first
    print(table(rows, differences=True))
    if config.json is not None:
        write_json(Path(config.json), entries)
    return rows


def score(encoder: Encoder, pairs: Pairs) -> Scores:
    """`evaluate_sts` with a progress bar."""
    return evaluate_sts(functools.partial(encoder.encode, show_progress=True), pairs)


def _splits(config: CompareConfig) -> Mapping[str, Pairs | TextPairs]:
    if config.pairs is not None:
        if columns := columns_without_score(Path(config.pairs)):
            return {"retrieval": load_text_pairs(Path(config.pairs), columns, print_note)}
        splits = {"pairs": load_pairs(config.pairs, print_note)}
    else:
        stsb, split = load_stsb(config.stsb), config.split or "both"
        splits = {name: stsb[name] for name in (("dev", "test") if split == "both" else (split,))}
    for pairs in splits.values():
        check_labels(pairs)
    return splits


def entry(name: str, pooling: str, scores: Mapping[str, Scores]) -> dict[str, Any]:
    """One model's figures for JSON."""
    return {"model": name, "pooling": pooling} | {split: score.row() for split, score in scores.items()}


@dataclass(frozen=True)
class EncodeConfig:
    """Embeds a corpus: one row per sentence, in the order of the input."""

    input: str = field(metadata={"help": "text file (a sentence a line), jsonl, csv, tsv, parquet, - or hub:NAME"})
    output: str = field(metadata={"help": "NumPy file to write, float32 [sentences, width]; ends in .npy"})
    column: str | None = flag(None, "column of a table that holds the text")
    limit: int | None = flag(None, "stop after so many sentences")
    pooling: Literal["cls", "mean", "max"] | None = flag(None, "default: what the model's folder says")
    batch_size: int = flag(64, "sentences in a batch")
    device: str = flag("auto", "auto, cuda, cpu or mps")

    def __post_init__(self) -> None:
        if not self.output.endswith(".npy"):
            raise ValueError(f"--output {self.output} must end in .npy")
        if self.batch_size < 1:
            raise ValueError(f"--batch-size must be at least 1, got {self.batch_size}")


def encode_file(model: str, config: EncodeConfig) -> np.ndarray:
    """Embeds ``config.input`` into ``config.output``, which appears only when it is complete.

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
    staged = output.with_name(f"{output.name}.{os.getpid()}.part")
    try:
        with staged.open("wb") as file:
            np.save(file, vectors)
        os.replace(staged, output)
    finally:
        staged.unlink(missing_ok=True)
    print(f"wrote {vectors.shape[0]:,} x {vectors.shape[1]} float32 to {output}")
    return vectors


def check_writable(path: Path, flag: str) -> None:
    """ValueError if no file can be written there: better known before the work than after it."""
    if path.is_dir():
        raise ValueError(f"{flag} {path} is a folder; give the name of a file")
    if not path.resolve().parent.is_dir():
        raise ValueError(f"{flag} {path}: there is no folder {path.resolve().parent}")


def note_truncated(sentences: list[str], encoder: Encoder) -> None:
    """Says how many sentences are longer than the encoder reads."""
    # A token takes a byte at least, so only these can be too long; the rest need not be tokenised twice.
    long = [sentence for sentence in sentences if len(sentence.encode()) > encoder.max_length - 2]
    cut = int((token_ids(long, encoder.tokenizer).lengths_B > encoder.max_length).sum()) if long else 0
    if cut:
        print_note(f"{cut:,} sentences are longer than {encoder.max_length} tokens and lose their end")
