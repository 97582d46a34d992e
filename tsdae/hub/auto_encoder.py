"""Encoders that are only used, of every family: those written by hand here, and else transformers' AutoModel.

# B sentences, L padded length, D hidden size
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tsdae import ops
from tsdae.encoder import SentenceEncoder, check_finite, pool
from tsdae.hub.conversion import UnsupportedArchitecture
from tsdae.hub.downloads import model_asset
from tsdae.hub.model_folder import encoder_folder, load_tokenizer, model_folder, read_sentence_settings
from tsdae.hub.settings import MODEL, read_settings
from tsdae.packing import Packed
from tsdae.text.tokenization import texts_of
from tsdae.utils.checks import check_range
from tsdae.utils.files import first_line, weight_files
from tsdae.utils.progress import progress_bar

FIRST_LAST_MEAN = "first-last-mean"
Encoder: TypeAlias = "SentenceEncoder | AutoModelEncoder"
NO_LIMIT, USUAL_LIMIT = 10**9, 512  # tokens
RANGES = {  # of settings of any family, by how their names end
    r"layers$": "[0, 1000]",
    r"(heads|size|dim|positions?|embeddings|buckets)$": "[0, 20000000]",
    r"(dropout|dropout_prob)$": "[0, 1]",
}


def load_encoder(name: str, pooling: str | None = None, device: torch.device | None = None) -> Encoder:
    """Load a run folder, a model folder or a model of the hub, whatever its family, to embed sentences.

        vectors = load_encoder("all-mpnet-base-v2").encode(["a man plays the guitar"])

    pooling: "cls", "mean", "max" or "first-last-mean"; default: what the folder says. device: default CPU.
    Returns a `SentenceEncoder`, or an `AutoModelEncoder` for a family without a hand-written encoder.
    """
    folder = encoder_folder(name)
    try:
        if pooling == FIRST_LAST_MEAN:
            encoder = FirstLastMean.from_pretrained(folder, "mean").to(device or "cpu").eval()
            encoder.pooling = FIRST_LAST_MEAN
            return encoder
        return SentenceEncoder.from_pretrained(folder, pooling).to(device or "cpu").eval()
    except UnsupportedArchitecture:
        return AutoModelEncoder(folder, pooling, device or torch.device("cpu"))


def check_models(names: Sequence[str]) -> None:
    """Raise ValueError if one of the models is known not to exist."""
    for name in names:
        if model_asset(name) is None:
            model_folder(name)


def load_encoders(
    names: Sequence[str], pooling: str | None, device: torch.device | None = None
) -> list[tuple[str, Encoder]]:
    """Load all models before the first of them works for minutes: one may turn out to be broken."""
    check_models(names)
    return [(name, load_encoder(name, pooling, device)) for name in names]


class FirstLastMean(SentenceEncoder):
    """The mean of the token vectors of the first and of the last layer, for evaluation only.

    The usual start of methods without training (Li et al. 2020, Su et al. 2021, arXiv 2103.15316: "first-last-avg").
    Some code takes the embeddings for the first layer; here it is the first layer's output, as in Su et al.'s.
    """

    def forward(self, packed: Packed[Tensor]) -> Tensor:
        """Return sentence_BD, not normalised."""
        layout = ops.layout_of(packed)
        first: list[Tensor] = []
        hook = self.bert.layers[0].register_forward_hook(lambda layer, inputs, hidden_TD: first.append(hidden_TD))
        try:
            last_TD = self.bert(packed, layout)
        finally:
            hook.remove()
        return pool((layout.tokens(first[0]) + last_TD) / 2, layout, "mean")


class AutoModelEncoder:
    """Any encoder of transformers, for evaluation only: padded batches, the folder's own pooling.

        AutoModelEncoder(Path("mpnet"), None, torch.device("cpu")).encode(["a dog"])

    ValueError: a folder that transformers cannot read, that has code of its own or lacks weights, or that holds a
    decoder as well.
    """

    def __init__(self, folder: Path, pooling: str | None, device: torch.device) -> None:
        settings = read_sentence_settings(folder)
        self.pooling = pooling or settings.pooling or "cls"
        self.normalize, self.device = settings.normalize, device
        transformer = folder / settings.model_folder
        raw = read_settings(transformer / "config.json", MODEL)
        if raw.get("auto_map"):
            raise ValueError(f"{folder} needs custom code (auto_map in config.json), which is never run")
        self.tokenizer = load_tokenizer(transformer, settings.lowercase)
        check_sizes(transformer / "config.json", raw)
        if (transformer / "adapter_config.json").is_file() or any(transformer.glob("*model*")):
            weight_files(transformer)  # names what a clone or a download has left out
        model, report = _auto_model(transformer, folder)
        missing = sorted(name for name in report["missing_keys"] if "pooler" not in name)
        if missing:  # AutoModel would put random numbers in their place
            raise ValueError(f"{folder}: its weights lack {', '.join(missing[:5])}" + ", ..." * (len(missing) > 5))
        if model.config.is_encoder_decoder:
            raise ValueError(f"{folder} holds {type(model).__name__}, which is not an encoder only")
        self.model = model.float().to(device).eval()
        limits = (settings.max_length or NO_LIMIT, self.tokenizer.model_max_length, _positions(model))
        self.max_length = min(limits) if min(limits) < NO_LIMIT else USUAL_LIMIT

    @torch.inference_mode()
    def encode(self, sentences: list[str], batch_size: int = 64, *, show_progress: bool = False) -> np.ndarray:
        """Embed sentences: float32 [B, D], in the order given."""
        sentences = list(texts_of(sentences))
        longest_first = sorted(range(len(sentences)), key=lambda i: -len(sentences[i]))
        batches = []
        with progress_bar(len(sentences), "encoding", " sentences", show_progress) as bar:
            for start in range(0, len(sentences), batch_size):
                texts = [sentences[i] for i in longest_first[start : start + batch_size]]
                cut = {"padding": True, "truncation": True, "max_length": self.max_length}
                features = self.tokenizer(texts, **cut, return_tensors="pt").to(self.device)
                output = self.model(**features, output_hidden_states=self.pooling == FIRST_LAST_MEAN)
                hidden_BLD = output.last_hidden_state
                if self.pooling == FIRST_LAST_MEAN:
                    hidden_BLD = (output.hidden_states[1] + hidden_BLD) / 2  # hidden_states[0]: the embeddings
                sentence_BD = self._pool(hidden_BLD, features["attention_mask"].bool())
                batches.append((F.normalize(sentence_BD, dim=1) if self.normalize else sentence_BD).cpu().numpy())
                bar.update(len(texts))
        vectors = np.concatenate(batches)[np.argsort(longest_first)]
        check_finite(vectors, sentences)
        return vectors

    def _pool(self, hidden_BLD: torch.Tensor, real_BL: torch.Tensor) -> torch.Tensor:
        """Pool padded rows as `encoder.pool` does packed ones. real_BL: True for tokens; padding may be on the left."""
        if self.pooling == "cls":
            first_B = real_BL.int().argmax(1)
            return hidden_BLD[torch.arange(len(first_B)), first_B]
        if self.pooling in ("mean", FIRST_LAST_MEAN):
            return (hidden_BLD * real_BL[:, :, None]).sum(1) / real_BL.sum(1, keepdim=True)
        return hidden_BLD.masked_fill(~real_BL[:, :, None], float("-inf")).max(1).values


def check_sizes(path: Path, raw: dict[str, Any]) -> None:
    """Raise ValueError for a size of config.json that no model has: AutoModel would begin to make it."""
    for key, value in raw.items():
        if not isinstance(value, (int, float)):
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{path}: {key} must be finite, got {value}")
        for ending, interval in RANGES.items():
            if re.search(ending, key):
                check_range(f"{path}: {key}", value, interval)


def _auto_model(transformer: Path, folder: Path) -> tuple[Any, dict[str, Any]]:
    """Return the model and transformers' report on its weights: `AutoModelEncoder` prints what matters of it."""
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return AutoModel.from_pretrained(str(transformer), output_loading_info=True, trust_remote_code=False)
    except Exception as error:  # transformers has many ways to refuse a folder
        raise ValueError(f"{folder} cannot be read by AutoModel: {first_line(error)}") from error
    finally:
        logging.set_verbosity(verbosity)


def _positions(model: Any) -> int:
    """Return the most tokens that have a position; some families leave those up to the padding's own unused."""
    positions = getattr(model.config, "max_position_embeddings", None) or -1
    tables = [module for name, module in model.named_modules() if name.endswith("position_embeddings")]
    paddings = [getattr(table, "padding_idx", None) for table in tables]
    unused = max((padding + 1 for padding in paddings if padding is not None), default=0)
    return positions - unused if positions > 0 else NO_LIMIT
