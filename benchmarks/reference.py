"""The reference's side of the benchmark, as a worker's process runs it: sentence-transformers, used as its manual says.

Its loss gets features that were padded beforehand, and its noise is timed apart: both are in its favour.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import DenoisingAutoEncoderLoss
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from benchmarks.parts import time_of_parts
from benchmarks.workers import MEMORY_STEPS, memory_of_process

Features = list[dict[str, Tensor]]
CLIP, LEARNING_RATE = 1.0, 3e-5  # as ours; 1.0 is also its Trainer's default


class Side:
    """Answers the calls of `benchmarks.ours.Side`, as far as there is something to compare."""

    loss: Any
    encoder: Any
    steps: list[Features]

    def __init__(self, threads: int, device: str) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        random.seed(0)
        transformers.utils.logging.set_verbosity_error()  # new weights are reported as missing
        transformers.utils.logging.disable_progress_bar()
        self.device = device
        self.precision = "fp32"

    # training

    def load_training(self, folder: str, attention: str | None = None) -> None:
        """Encoder, decoder and loss from a folder; the weights that it lacks (cross-attention, head) are drawn.

        attention: as transformers calls it ("sdpa", "flash_attention_2"); None: its default.
        """
        self.loss = DenoisingAutoEncoderLoss(SentenceTransformer(folder, device=self.device))
        self.loss.to(self.device)  # it makes its decoder on the CPU, and ties the encoder to that
        if attention is not None:
            for model in (self.loss.encoder.transformers_model, self.loss.decoder):
                model.set_attn_implementation(attention)

    def weights(self) -> dict[str, dict[str, np.ndarray]]:
        return self._named(lambda parameter: parameter.detach())

    def dropout(self) -> list[float]:
        """Every probability of dropout that is above 0."""
        configs = (self.loss.encoder.transformers_model.config, self.loss.decoder.config)
        found = {p for config in configs for p in (config.hidden_dropout_prob, config.attention_probs_dropout_prob)}
        return sorted(p for p in found if p > 0)

    def gradients(
        self, precision: str, batch: tuple[list[list[int]], list[list[int]]]
    ) -> tuple[float, dict[str, dict[str, np.ndarray]]]:
        """The loss of a batch without dropout, and its gradients."""
        self.loss.eval().to(torch.float64 if precision == "fp64" else torch.float32)
        with torch.autocast(self.device, torch.bfloat16, enabled=precision == "bf16"):
            loss = self.loss(self._features(batch), None)
        loss.backward()
        gradients = self._named(lambda parameter: parameter.grad)
        self.loss.zero_grad()
        self.loss.float()
        return float(loss.detach()), gradients

    def _named(self, get: Any) -> dict[str, dict[str, np.ndarray]]:
        """Weights or gradients, by the names of the encoder and of the decoder; None (the unused pooler) left out."""
        sides = {"encoder": self.loss.encoder.transformers_model, "decoder": self.loss.decoder}
        return {
            side: {
                name: get(parameter).cpu().numpy().copy()
                for name, parameter in module.named_parameters(remove_duplicate=False)
                if get(parameter) is not None
            }
            for side, module in sides.items()
        }

    def _features(self, batch: tuple[list[list[int]], list[list[int]]]) -> Features:
        padding = self.loss.encoder.tokenizer.pad_token_id
        features = []
        for sentences in batch:
            rows = [torch.tensor(ids) for ids in sentences]
            ids_BL = pad_sequence(rows, batch_first=True, padding_value=padding)
            mask_BL = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
            features.append({"input_ids": ids_BL.to(self.device), "attention_mask": mask_BL.to(self.device)})
        return features

    def start_training(self, precision: str, batches: list[tuple[list[list[int]], list[list[int]]]]) -> None:
        """A new optimiser, the Trainer's default; dropout on. batches: the token ids of steps 0, 1, ..."""
        self.precision, self.steps = precision, [self._features(batch) for batch in batches]
        self.optimizer = torch.optim.AdamW(self.loss.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
        self.loss.train()

    def _step(self, number: int) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16"):
            loss: Tensor = self.loss(self.steps[number], None)
        loss.backward()
        nn.utils.clip_grad_norm_(self.loss.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def train(self, first: int, count: int) -> list[float]:
        """Seconds of each of these steps."""
        seconds = []
        for number in range(first, first + count):
            start = time.perf_counter()
            self._step(number)
            seconds.append(time.perf_counter() - start)
        return seconds

    def parts(self, first: int, count: int) -> dict[str, float]:
        return time_of_parts(self._step, first, count)

    # noise and tokens

    def make_batches(self, batches: list[list[str]]) -> list[float]:
        """Seconds that noise and tokens of each batch take: the transform of its manual, which deletes 60 % here."""
        from nltk.tokenize import word_tokenize
        from nltk.tokenize.treebank import TreebankWordDetokenizer

        seconds = []
        for texts in batches:
            start = time.perf_counter()
            noisy = []
            for text in texts:
                words = word_tokenize(text, preserve_line=True)
                kept = [word for word in words if random.random() < 0.4] or [random.choice(words)]
                noisy.append(TreebankWordDetokenizer().detokenize(kept))
            for made in (noisy, texts):
                self.loss.encoder.preprocess(made)
            seconds.append(time.perf_counter() - start)
        return seconds

    # encoding

    def load_encoder(self, folder: str) -> None:
        self.encoder = SentenceTransformer(folder, device=self.device)

    def vectors(self, sentences: Sequence[str]) -> np.ndarray:
        return np.asarray(self.encoder.encode(list(sentences), show_progress_bar=False))

    def encode(self, sentences: Sequence[str], times: int) -> list[float]:
        """Seconds of each call with its defaults."""
        seconds = []
        for _ in range(times):
            start = time.perf_counter()
            self.encoder.encode(list(sentences), show_progress_bar=False)
            seconds.append(time.perf_counter() - start)
        return seconds

    def encode_singly(self, sentences: Sequence[str]) -> list[float]:
        """Seconds of one call a sentence."""
        return [self.encode([sentence], 1)[0] for sentence in sentences]

    # memory, in a fresh process

    def write_random_xlm_roberta(self, settings: dict[str, Any], folder: str) -> None:
        """An XLM-R of random weights with a small tokenizer. settings: of `tsdae.bert.BertConfig`."""
        from tests import tiny
        from tsdae.hub.model_folder import SentenceSettings, write_sentence_settings

        config = transformers.XLMRobertaConfig(
            vocab_size=settings["vocabulary_size"],
            hidden_size=settings["width"],
            num_hidden_layers=settings["layers"],
            num_attention_heads=settings["heads"],
            intermediate_size=settings["feed_forward"],
            max_position_embeddings=settings["positions"],
            type_vocab_size=settings["token_types"],
            pad_token_id=settings["position_offset"] - 1,
        )
        transformers.XLMRobertaForMaskedLM(config).save_pretrained(folder)
        tiny.tokenizer().save_pretrained(folder)
        longest = settings["positions"] - settings["position_offset"]
        write_sentence_settings(Path(folder), settings["width"], SentenceSettings("cls", max_length=longest))

    def memory_of_step(self, folder: str, ids_BL: np.ndarray) -> dict[str, int]:
        """Bytes in memory after the imports, and at most, until two fp32 training steps are done."""
        after_imports = memory_of_process("VmRSS")
        self.load_training(folder)
        self.start_training("fp32", [(ids_BL.tolist(), ids_BL.tolist())] * MEMORY_STEPS)
        for number in range(MEMORY_STEPS):
            self._step(number)
        return {"after_imports": after_imports, "peak": memory_of_process("VmHWM")}
