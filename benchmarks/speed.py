"""Measures speed and memory on a CPU against sentence-transformers and against the machine's own limit.

    python -m pip install -e ".[benchmark]"
    python benchmarks/speed.py            everything this machine allows: prints the table, writes benchmarks/rows/
    python benchmarks/speed.py --short    a few repetitions, writes nothing: fails only if the two sides are not equal

Before anything is timed, both sides get the same weights and must compute the same loss and gradients. Each side has a
process of its own, and they work in turn, block by block.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # in place of benchmarks/: its files are modules of the package `benchmarks`

import torch  # noqa: E402  # the root has to be on the path first

from benchmarks import rows, tables  # noqa: E402
from benchmarks.bench import Bench, NotEqual, NotRun  # noqa: E402
from benchmarks.measure_rest import XLMR_LIKE, encode, memory, start  # noqa: E402
from benchmarks.measure_training import default_run, slower, training  # noqa: E402
from benchmarks.workers import WorkerFailed  # noqa: E402
from tsdae import load_stsb  # noqa: E402
from tsdae.commands.train import sample_sentences  # noqa: E402
from tsdae.hub.downloads import MINILM, fetch  # noqa: E402

GROUPS: dict[str, Callable[[Bench], Iterator[rows.Row]]] = {
    "training": training,
    "default": default_run,
    "slower": slower,
    "encode": encode,
    "memory": memory,
    "start": start,
}


def main(argv: list[str]) -> int:
    """Exit status: 0; 1 if the sides are not equal or a measurement failed; 2 if rows could not be written."""
    arguments = parse(argv)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    taken = rows.origin(shlex.join(["python", "benchmarks/speed.py", *argv]), gpu, arguments.commit)
    written = not (arguments.short or arguments.dry)
    if written:
        try:
            rows.check_writable(taken)
        except rows.Refused as refused:
            print(refused, file=sys.stderr)
            return 2
    sentences, test_sentences = read_sentences(arguments.sentences)
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="tsdae-speed-") as scratch:
        bench = Bench(
            model=arguments.model or fetch(MINILM),
            sentences=sentences,
            test_sentences=test_sentences,
            corpus=arguments.corpus,
            threads=arguments.threads,
            short=arguments.short,
            profile=arguments.profile,
            vocabulary=arguments.vocabulary or (2000 if arguments.short else XLMR_LIKE["vocabulary_size"]),
            origin=taken,
            scratch=Path(scratch),
        )
        for name in arguments.only or GROUPS:
            try:
                for row in GROUPS[name](bench):
                    print(tables.one_line(row), flush=True)
            except NotRun as reason:
                print(f"{name}: not run, {reason}", flush=True)
            except WorkerFailed as failure:  # the rows of the other measurements are still worth keeping
                failed.append(name)
                print(f"{name}: failed, {failure}", file=sys.stderr)
            except NotEqual as difference:
                print(f"{name}: the two sides are not equal, so nothing is timed. They differ in {difference}")
                return 1
    print("\n" + tables.page(bench.rows))
    if written:
        try:
            if rows.tree_state()[0] not in (None, taken.commit) or rows.sources_here() != taken.sources:
                raise rows.Refused("no row is written: the code or its commit changed while it was measured")
            paths = rows.write(bench.rows.values(), arguments.rows)
        except rows.Refused as refused:
            print(refused, file=sys.stderr)
            return 2
        print(
            f"{len(paths)} rows are in {arguments.rows}; python benchmarks/tables.py --write puts them into the pages"
        )
    return 1 if failed else 0


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measures speed and memory against sentence-transformers.", allow_abbrev=False
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument(
        "--short", action="store_true", help="few repetitions, small sizes, all equality; writes nothing"
    )
    parser.add_argument("--dry", action="store_true", help="the full measurement, written nowhere")
    parser.add_argument("--profile", action="store_true", help="also where the time of a step goes, part by part")
    parser.add_argument("--only", nargs="+", choices=GROUPS, help="measure only these")
    parser.add_argument("--threads", type=int, default=cores, help="CPU threads of each side; default: all cores")
    parser.add_argument("--model", type=Path, help="folder of the model; default: all-MiniLM-L6-v2, fetched")
    parser.add_argument("--sentences", type=Path, help="file to train on, a sentence a line; default: STS-B, fetched")
    parser.add_argument("--corpus", help="prepared corpus (scripts/prepare.py) that the start is measured on")
    parser.add_argument("--vocabulary", type=int, help="of the memory measurement; default 250,002, with --short 2,000")
    parser.add_argument("--rows", type=Path, default=rows.ROWS, help="folder that the rows go to")
    parser.add_argument("--commit", help="what a tree without .git is a copy of; tables.py --check verifies it")
    arguments = parser.parse_args(argv)
    if arguments.threads < 1:
        parser.error(f"--threads must be at least 1, got {arguments.threads}")
    for path in (arguments.model, arguments.sentences):
        if path is not None and not path.exists():
            parser.error(f"{path} does not exist")
    return arguments


def read_sentences(path: Path | None) -> tuple[list[str], list[str] | None]:
    """(to train on, to encode): the sample run's and STS-B's test split, both columns; or a file, and None."""
    if path is not None:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        return [line for line in lines if line], None
    stsb = load_stsb()
    return sample_sentences(stsb), stsb["test"].first + stsb["test"].second


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
