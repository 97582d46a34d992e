"""Where the parts of `benchmarks/gpu.py` run, and on what."""

from __future__ import annotations

import dataclasses
import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import ours
from benchmarks.rows import ROOT, Origin, Row, origin, write
from benchmarks.workers import memory_of_process
from tsdae import TSDAE, SentenceEncoder, TrainConfig
from tsdae.hub.model_folder import load_tokenizer

MINI = ROOT / "tsdae" / "hub" / "mini"
SMALL = {"width": 32, "layers": 2, "heads": 2, "feed_forward": 64, "positions": 128}  # with --cpu
WORDS_OF_BERT = 30_522
GB = 1e9


@dataclass(frozen=True)
class Place:
    """Where the parts run: on a CUDA device, or on a CPU with a tiny model and few steps (``cpu``)."""

    cpu: bool
    output: Path
    origin: Origin

    @classmethod
    def here(cls, cpu: bool, output: Path, command: str, commit: str | None) -> Place:
        return cls(cpu, output, origin(command, None if cpu else torch.cuda.get_device_name(), commit))

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.cpu else "cuda")

    def steps(self, count: int) -> int:
        """``count`` on a GPU; a few of them on a CPU."""
        return max(2, count // 50) if self.cpu else count

    def config(self, **settings: Any) -> TrainConfig:
        recipe: dict[str, Any] = {"device": self.device.type, "eval_every": 0, "precision": "bf16"}
        return TrainConfig(**(recipe | settings))

    def wait(self) -> None:
        if not self.cpu:
            torch.cuda.synchronize()

    def peak_gb(self) -> float:
        """The most memory since the last call: of tensors on a GPU, of the process on a CPU."""
        gc.collect()
        if self.cpu:
            return memory_of_process("VmHWM") / GB
        peak = torch.cuda.max_memory_allocated() / GB
        torch.cuda.reset_peak_memory_stats()
        return peak

    def side(self, count: int = 40_000, **settings: Any) -> ours.Side:
        """Our side with BERT-base's shape, random weights and ``count`` sentences; ``settings`` of `BertConfig`."""
        side = ours.Side(torch.get_num_threads(), self.device.type)
        shape = {"vocabulary_size": WORDS_OF_BERT} | (SMALL if self.cpu else {}) | settings
        side.load_random(shape, str(MINI), sentences(600 if self.cpu else count))
        return side

    def add(self, row: Row) -> dict[str, Any]:
        """Write a row of the speed table at once."""
        folder = self.output / "rows"
        if self.cpu or self.origin.clean is False or self.origin.commit == "unknown":
            folder = self.output / "rows-of-no-commit"
            row = dataclasses.replace(row, clean=True, commit="none")
        write([row], folder)
        return {"values": row.values, "ratio": row.ratio} | row.details


def sentences(count: int) -> list[str]:
    """Words of mini's vocabulary at random; 5 to 40 in a sentence, 11 at the median, as in captions and news."""
    words = np.array(sorted(w for w in load_tokenizer(MINI).get_vocab() if w.isascii() and w.isalpha() and len(w) > 1))
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(2.4, 0.4, count), 5, 40).astype(int)
    drawn = np.split(random.choice(words, lengths.sum()), lengths.cumsum()[:-1])
    return [" ".join(sentence) for sentence in drawn]


def mini(pooling: str = "cls", tie: bool = True) -> TSDAE:
    return TSDAE(SentenceEncoder.from_pretrained("mini", pooling=pooling), tie)
