"""Preparing and training on ten million sentences: speed, memory, and what a step costs beside ten thousand.

    python benchmarks/scale.py TEXT --model MODEL --scratch FOLDER > benchmarks/scale.md

TEXT holds sentences, one a line, a million or so; the first half of each is joined with the second half of another,
eight times over, so that ten million different sentences of natural length arise. MODEL is a folder or name whose
tokenizer has about 30,000 pieces. FOLDER takes 3 GB for an hour. Linux only: memory is read from /proc.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.rows import origin, spread  # noqa: E402  # the root has to be on the path first
from benchmarks.workers import memory_of_process  # noqa: E402
from tsdae import TSDAE, DenoisingDataset, SentenceEncoder  # noqa: E402
from tsdae.text.corpus import Corpus  # noqa: E402
from tsdae.text.lines import numbered_lines  # noqa: E402
from tsdae.utils.progress import print_note  # noqa: E402

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
BATCH, BLOCK, ROUNDS = 8, 128, 6  # sentences, steps (1,024 sentences are noised at once), measurements
GB = 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures preparing and training on ten million sentences.")
    parser.add_argument("text", type=Path, help="sentences, one a line; .gz too")
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--scratch", required=True, type=Path, help="folder with 3 GB of room")
    parser.add_argument("--sentences", type=int, default=SIZES[-1], help="how many to make")
    arguments = parser.parse_args()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    text, corpus = arguments.scratch / "text.txt", arguments.scratch / "corpus"
    if not text.is_file():
        print_note("making the text")
        make_text(arguments.text, text, arguments.sentences)
    command = [sys.executable, str(ROOT / "scripts" / "prepare.py"), str(text), "--model", arguments.model]
    command += ["--output", str(corpus), "--limit", str(arguments.sentences), "--overwrite"]
    seconds, peak, peak_of_one = prepared(command)
    large = Corpus.open(corpus)
    total = len(large) + large.made_from["heldout_sentences"]
    shown = (
        f"python scripts/prepare.py {text.name} --model {Path(arguments.model).name} --output corpus --limit {total}"
    )

    print("# Ten million sentences\n")
    print(f"    python benchmarks/scale.py TEXT --model MODEL --scratch FOLDER > benchmarks/scale.md\n    {shown}\n")
    taken = origin("", None)
    changes = "" if taken.clean else " with changes"
    print(f"Taken on {taken.cpu}, {torch.get_num_threads()} threads, commit {taken.commit[:7]}{changes}.\n")
    print("| preparing | | target |\n| --- | --- | --- |")
    print(f"| sentences, tokens | {total:,}, {len(large.token_ids):,} | |")
    print(f"| text, corpus | {text.stat().st_size / GB:.2f} GB, {folder_size(corpus) / GB:.2f} GB | |")
    print(f"| seconds, all in all | {seconds:.0f} | |")
    print(f"| sentences a second | {total / seconds:,.0f} | 20,000 on 2 cores |")
    print(f"| largest anonymous memory of all its processes together | {peak / GB:.2f} GB | |")
    print(f"| largest of one process | {peak_of_one / GB:.2f} GB | |\n")
    train_and_read(large, arguments.model)


def make_text(source: Path, output: Path, sentences: int) -> None:
    """A tenth more than asked, since some halves are equal."""
    lines = (line.split() for _, line in numbered_lines(str(source)))
    halves = [(words[: len(words) // 2], words[len(words) // 2 :]) for words in lines if len(words) > 3]
    with output.open("w", encoding="utf-8") as file:
        for number in range(sentences + sentences // 10):
            turn, row = divmod(number, len(halves))
            file.write(" ".join(halves[row][0] + halves[(row * 31 + 7919 * turn) % len(halves)][1]) + "\n")


def prepared(command: list[str]) -> tuple[float, float, float]:
    """(seconds, largest anonymous memory of all its processes together, and of one), looked at five times a second."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    together, single = 0, 0
    while process.poll() is None:
        memory = [anonymous(pid) for pid in family(process.pid)]
        together, single = max(together, sum(memory)), max(single, *memory)
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"failed: {shlex.join(command)}")
    return time.perf_counter() - start, together, single


def family(pid: int) -> Iterator[int]:
    """A process and its children's children."""
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:  # it has ended
        return
    for child in children:
        yield from family(int(child))


def anonymous(pid: int) -> int:
    """RssAnon in bytes; 0 of a process that has ended."""
    try:
        return memory_of_process("RssAnon", pid)
    except (OSError, ValueError):
        return 0


def folder_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def train_and_read(large: Corpus, model: str) -> None:
    """Batches alone, then whole steps on the smallest and the largest corpus in turn, in one process."""
    torch.manual_seed(0)
    autoencoder = TSDAE(SentenceEncoder.from_pretrained(model, pooling="cls"))
    tokenizer = autoencoder.encoder.tokenizer
    optimiser = torch.optim.AdamW(autoencoder.parameters(), lr=3e-5, fused=True)
    streams = {}
    for size in SIZES:
        if size < len(large):
            end = large.boundaries[size]
            part = dataclasses.replace(
                large,
                token_ids=large.token_ids[:end],
                marks=large.marks[:end],
                boundaries=large.boundaries[: size + 1],
            )
        else:
            part = large
        streams[len(part)] = DenoisingDataset(part, tokenizer).batches(0, BATCH)
    reading: dict[int, list[float]] = {size: [] for size in streams}
    for _ in range(20):
        for size, stream in streams.items():
            start = time.perf_counter()
            for _ in range(BLOCK):
                next(stream)
            reading[size].append((time.perf_counter() - start) / BLOCK)
    print("| sentences in the corpus | milliseconds for a batch of 8, noise included [p20, p80] |\n| --- | --- |")
    for size, seconds in reading.items():
        found = spread(1000 * each for each in seconds)
        print(f"| {size:,} | {found['p50']:.3f} [{found['p20']:.3f}, {found['p80']:.3f}] |")

    smallest, largest = min(streams), max(streams)
    per_token: dict[int, list[float]] = {smallest: [], largest: []}
    memory: dict[int, int] = {}
    for turn in range(ROUNDS + 1):
        for size in per_token:
            tokens, start = 0, time.perf_counter()
            for _ in range(BLOCK):
                batch = next(streams[size])
                loss = autoencoder(batch)
                loss.mean.backward()
                optimiser.step()
                optimiser.zero_grad()
                tokens += batch.noisy.token_count + batch.target.token_count
            if turn:  # the first one warms up
                per_token[size].append((time.perf_counter() - start) / tokens)
            memory.setdefault(size, memory_of_process("RssAnon"))
        print_note(f"round {turn} of {ROUNDS}")
    ratio = spread(many / few for few, many in zip(per_token[smallest], per_token[largest], strict=True))
    print(
        f"\nA training step (batch of {BATCH}, fp32, both corpora in turn, {ROUNDS} times {BLOCK} steps), by token: "
        f"{largest:,} sentences take {ratio['p50']:.3f} times what {smallest:,} take [p20 {ratio['p20']:.3f}, "
        f"p80 {ratio['p80']:.3f}]; target: within 3 %. Anonymous memory of the training process "
        f"after the first {BLOCK} steps on {smallest:,} sentences: {memory[smallest] / GB:.2f} GB, after as many on "
        f"{largest:,}: {memory[largest] / GB:.2f} GB; target: not 1 GB more."
    )


if __name__ == "__main__":
    main()
