"""Our side of the benchmark, as a worker's process runs it."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import tsdae
from benchmarks.limits import Shape, Tokens, flop, seconds_of_optimizer, seconds_of_products, seconds_of_softmax
from benchmarks.parts import time_of_parts
from benchmarks.rows import ROOT
from benchmarks.workers import MEMORY_STEPS, PeakOf, memory_of_process
from tests import tiny
from tests.hf_names import as_ours
from tests.tolerances import BFLOAT16_RATIO, FLOAT32, FLOAT64
from tsdae import TSDAE, Batch, DenoisingDataset, SentenceEncoder, TrainConfig, train
from tsdae.bert import Bert, BertConfig
from tsdae.hub.model_folder import load_tokenizer
from tsdae.text.corpus import Corpus
from tsdae.text.marks import BEGINS_WORD, SPECIAL

Precision = Literal["fp64", "fp32", "bf16"]
NEVER_ENDING = 10**6  # steps
FAMILY = "bert"  # of the checkpoints that are compared
Named = dict[str, dict[str, np.ndarray]]  # the reference's weights or gradients: encoder, decoder -> name -> array
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}


class Training:
    """`tsdae.train` itself, which is left before each step and entered again for it.

    A step lasts from one drawn batch to the next: it trains, logs and draws as any run does. In a greenlet and not in a
    thread: outside a process's first thread PyTorch trains a third slower.
    """

    def __init__(self, model: TSDAE, dataset: DenoisingDataset, config: TrainConfig) -> None:
        from greenlet import greenlet

        paused = copy.copy(dataset)
        vars(paused)["batches"] = self._batches(dataset)
        self._training = greenlet(lambda: train(model, paused, config))
        self._next = 0
        self._training.switch()

    def _batches(self, dataset: DenoisingDataset) -> Callable[..., Iterator[Batch]]:
        def batches(*arguments: int) -> Iterator[Batch]:
            for batch in dataset.batches(*arguments):
                self._training.parent.switch()
                yield batch

        return batches

    def step(self, number: int) -> None:
        """Trains on batch ``number``; they come in order."""
        if number != self._next:
            raise ValueError(f"step {number} was asked for, and {self._next} is the next")
        self._next += 1
        self._training.switch()


class Side:
    """What the benchmark asks of our side; `benchmarks.reference.Side` answers the same calls."""

    model: TSDAE
    dataset: DenoisingDataset
    training: Training
    encoder: SentenceEncoder

    def __init__(self, threads: int, device: str) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.device = torch.device(device)
        self.float64_gradients: dict[str, Tensor] = {}
        measured = Path(tsdae.__file__).resolve().parent
        if measured != ROOT / "tsdae":
            raise ValueError(f"the package that would be measured is {measured}, not the one beside this benchmark")

    # training

    def write_training_folder(self, model_folder: str, folder: str) -> None:
        """The model as it is trained, pooled by [CLS] and without a Normalize module, for both sides to read."""
        made = SentenceEncoder.from_pretrained(model_folder, pooling="cls")
        made.normalize = False
        made.save_pretrained(folder)

    def load_training(self, folder: str, sentences: Sequence[str], weights: Named | None = None) -> None:
        """Model and tokenised corpus. weights: all of the reference's, new ones (cross-attention, head) too."""
        encoder = SentenceEncoder.from_pretrained(folder, pooling="cls")
        self.model = TSDAE(encoder)
        self.dataset = DenoisingDataset(list(sentences), encoder.tokenizer)
        if len(self.dataset) != len(sentences):
            raise ValueError(f"{len(sentences) - len(self.dataset)} of the sentences hold no word: leave them out")
        if weights is not None:
            self.model.load_state_dict(self._as_ours(weights))

    def load_random(self, settings: dict[str, Any], tokenizer: str, sentences: Sequence[str]) -> int:
        """A model of random weights on this side's device; returns how many parameters it has."""
        loaded = load_tokenizer(Path(tokenizer))
        bert = Bert(BertConfig(**({"vocabulary_size": len(loaded)} | settings)))
        self.model = TSDAE(SentenceEncoder(bert, loaded)).to(self.device)
        self.dataset = DenoisingDataset(list(sentences), loaded)
        return sum(parameter.numel() for parameter in self.model.parameters())

    def dropout(self) -> list[float]:
        """Every probability of dropout that is above 0."""
        config = self.model.encoder.bert.config
        return sorted({p for p in (config.dropout, config.attention_dropout) if p > 0})

    def batches(self, batch_size: int, first: int, count: int) -> list[tuple[list[list[int]], list[list[int]]]]:
        """(noisy, clean) token ids of the sentences of some steps: for the reference to train on the same."""
        made = [self._batch(batch_size, number) for number in range(first, first + count)]
        return [(list(batch.noisy.sentences()), list(batch.target.sentences())) for batch in made]

    def rows(self, batch_size: int, first: int, count: int) -> list[list[int]]:
        """Which sentences these steps train on."""
        return [
            self.dataset.order(number * batch_size, batch_size)[1].tolist() for number in range(first, first + count)
        ]

    def compare(
        self, precision: Precision, batch_size: int, their_loss: float, their_gradients: Named
    ) -> dict[str, Any]:
        """Loss and every gradient of batch 0, without dropout, against the reference's.

        Returns {"differs": what and by how much, empty if equal; "error": the largest difference}. fp64 and fp32 are
        held to the tests' tolerances, element by element; bf16 may err at most twice as much as the reference's bf16,
        each against float64, so fp64 has to come first.
        """
        loss, ours = self._gradients(precision, batch_size)
        theirs = self._as_ours(their_gradients)
        without = [name for name, gradient in theirs.items() if not gradient.any()]
        if without:
            raise ValueError(f"the gradient of {', '.join(without)} is zero: nothing would be compared")
        ours, theirs = (
            {"the loss": torch.tensor(loss, dtype=torch.float64)} | ours,
            {"the loss": torch.tensor(their_loss, dtype=torch.float64)} | theirs,
        )
        if precision == "bf16":
            errors = [relative_error(side, self.float64_gradients) for side in (ours, theirs)]
            allowed = BFLOAT16_RATIO * errors[1]
            text = f"all gradients together err by {errors[0]:.2g} in bf16, and {allowed:.2g} is allowed"
            return {"differs": [text] if errors[0] > allowed else [], "error": errors[0], "reference_error": errors[1]}
        if precision == "fp64":
            self.float64_gradients = theirs
        tolerance = FLOAT64 if precision == "fp64" else FLOAT32
        differs, largest = [], 0.0
        for name, gradient in ours.items():
            error = (gradient.double() - theirs[name].double()).abs()
            largest = max(largest, float(error.max()))
            if not (error <= tolerance["atol"] + tolerance["rtol"] * theirs[name].double().abs()).all():
                differs.append(f"{name} by {float(error.max()):.3g}")
        return {"differs": differs, "error": largest}

    def _gradients(self, precision: Precision, batch_size: int) -> tuple[float, dict[str, Tensor]]:
        return loss_and_gradients(self.model.to(self.device), self._batch(batch_size, 0), precision)

    def _as_ours(self, theirs: Named) -> dict[str, Tensor]:
        sides = {side: {n: torch.from_numpy(a) for n, a in arrays.items()} for side, arrays in theirs.items()}
        return as_ours(self.model, FAMILY, sides["encoder"], sides["decoder"])

    def _batch(self, batch_size: int, number: int) -> Batch:
        return self.dataset.batch(*self.dataset.order(number * batch_size, batch_size))

    def start_training(self, precision: Precision, batch_size: int) -> None:
        """A new optimiser; dropout on."""
        threads = torch.get_num_threads()
        config = TrainConfig(
            steps=NEVER_ENDING,
            precision=precision,
            batch_size=batch_size,
            device=self.device.type,
            threads=threads,
            eval_every=0,
        )
        self.training = Training(self.model, self.dataset, config)

    def train(self, first: int, count: int) -> list[float]:
        """Seconds of each of these steps."""
        return [_seconds(lambda number=number: self.training.step(number)) for number in range(first, first + count)]

    def parts(self, first: int, count: int) -> dict[str, float]:
        return time_of_parts(self.training.step, first, count)

    def make_batches(self, batch_size: int, first: int, count: int) -> list[float]:
        """Seconds that the noisy and clean token ids of each of these steps take, as training draws them.

        Many batches are made at once, so each is given its share of the time of all.
        """
        start, stream = time.perf_counter(), self.dataset.batches(first * batch_size, batch_size)
        for _ in range(count):
            next(stream)
        return [(time.perf_counter() - start) / count] * count

    # limits

    def tokens(self, batch_size: int, number: int) -> Tokens:
        batch = self._batch(batch_size, number)
        return Tokens(batch.noisy.token_count, batch.target.token_count - batch_size, batch_size)

    def flop(self, batch_size: int, number: int) -> int:
        return flop(_shape(self.model), self.tokens(batch_size, number))

    def limit(self, precision: Precision, batch_size: int, number: int, repetitions: int) -> dict[str, float]:
        """The parts of the limit of step ``number`` in seconds, its FLOP, and its tokens."""
        shape, tokens = _shape(self.model), self.tokens(batch_size, number)
        shapes = [tuple(parameter.shape) for parameter in self.model.parameters()]
        dtype = DTYPES[precision]
        return {
            "products": seconds_of_products(shape, tokens, dtype, repetitions),
            "optimiser": seconds_of_optimizer(shapes, repetitions),
            "softmax": seconds_of_softmax(tokens.target, shape.vocabulary, dtype, repetitions),
            "flop": flop(shape, tokens),
            "noisy_tokens": tokens.noisy,
            "target_tokens": tokens.target,
        }

    # encoding

    def load_encoder(self, folder: str) -> None:
        self.encoder = SentenceEncoder.from_pretrained(folder)

    def vectors(self, sentences: Sequence[str]) -> np.ndarray:
        return self.encoder.encode(sentences)

    def encode(self, sentences: Sequence[str], times: int) -> list[float]:
        """Seconds of each call with its defaults."""
        return [_seconds(lambda: self.encoder.encode(sentences)) for _ in range(times)]

    def count_encoded(self, sentences: Sequence[str]) -> int:
        """How many sentences reach the model in one call of `encode`: fewer than given if equal ones were merged."""
        seen: list[int] = []
        handle = self.encoder.bert.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
        self.encoder.encode(sentences)
        handle.remove()
        return sum(seen)

    def encode_singly(self, sentences: Sequence[str]) -> list[float]:
        """Seconds of one call a sentence."""
        return [_seconds(lambda sentence=sentence: self.encoder.encode([sentence])) for sentence in sentences]

    # memory and start, each in a fresh process

    def memory_of_step(self, settings: dict[str, Any], ids_BL: np.ndarray) -> dict[str, int]:
        """Bytes in memory after the imports, and at most, until two fp32 training steps of random weights are done.

        settings: of `BertConfig`. ids_BL: the clean sentences, and the noisy ones too.
        """
        after_imports = memory_of_process("VmRSS")
        self.model = TSDAE(SentenceEncoder(Bert(BertConfig(**settings)), tiny.tokenizer()))
        self.dataset = DenoisingDataset(corpus_of(ids_BL), self.model.encoder.tokenizer, noise_ratio=0.0)
        self.start_training("fp32", len(ids_BL))
        for number in range(MEMORY_STEPS):
            self.training.step(number)
        return {"after_imports": after_imports, "peak": memory_of_process("VmHWM")}

    def tile_corpus(self, folder: str, sentences: int, output: str) -> None:
        """Writes a prepared corpus of so many sentences: a smaller one, again and again."""
        small = Corpus.open(folder)
        times = -(-sentences // len(small))
        lengths = np.tile(small.lengths, times)[:sentences]
        boundaries = np.concatenate([[0], np.cumsum(lengths)])
        tokens = int(boundaries[-1])
        arrays: dict[str, Any] = {
            name: np.tile(getattr(small, name), times)[:tokens] for name in ("token_ids", "marks")
        }
        large = dataclasses.replace(small, **arrays, boundaries=boundaries)
        large.write(output)

    def start_on_corpus(self, model_folder: str, corpus_folder: str) -> dict[str, float]:
        """From the loaded model to the end of the first step: seconds, and anonymous memory beyond the model."""
        self.model = TSDAE(SentenceEncoder.from_pretrained(model_folder, pooling="cls"))
        before = memory_of_process("RssAnon")
        with PeakOf("RssAnon") as peak:
            start = time.perf_counter()
            corpus = Corpus.open(corpus_folder)
            self.dataset = DenoisingDataset(corpus, self.model.encoder.tokenizer)
            self.start_training("fp32", 8)
            self.training.step(0)
            seconds = time.perf_counter() - start
        return {
            "seconds": seconds,
            "sentences": len(self.dataset),
            "beyond_model": memory_of_process("RssAnon") - before,
            "peak_beyond_model": peak.largest - before,
        }


def corpus_of(ids_BL: np.ndarray) -> Corpus:
    """Sentences of equal length made of these ids, the first and last of each taken for special tokens."""
    marks_BL = np.full(ids_BL.shape, BEGINS_WORD, dtype=np.uint8)
    marks_BL[:, [0, -1]] = SPECIAL
    boundaries = np.arange(len(ids_BL) + 1, dtype=np.int64) * ids_BL.shape[1]
    return Corpus(ids_BL.ravel().astype(np.int32), marks_BL.ravel(), boundaries)


def _shape(model: TSDAE) -> Shape:
    config = model.encoder.bert.config
    return Shape(config.width, config.feed_forward, config.layers, model.decoder_layers, config.vocabulary_size)


def loss_and_gradients(model: TSDAE, batch: Batch, precision: Precision) -> tuple[float, dict[str, Tensor]]:
    """The loss of a batch without dropout and every gradient there is, on the CPU; the model is in fp32 afterwards."""
    device = next(model.parameters()).device
    model.eval().to(torch.float64 if precision == "fp64" else torch.float32)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        loss = model(batch.to(device)).mean
    loss.backward()
    gradients = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.float()
    return float(loss.detach()), gradients


def relative_error(gradients: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """Length of the difference of all gradients together, over the length of the exact ones."""
    names = exact.keys() - {"the loss"}
    difference = sum(float((gradients[name].double() - exact[name]).square().sum()) for name in names)
    return math.sqrt(difference / sum(float(exact[name].square().sum()) for name in names))


def _seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
