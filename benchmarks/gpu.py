"""What has to be known of a GPU, in nine minutes: right results first, then speed.

    benchmarks/gpu.sh                    on the CUDA device; results in runs/gpu/
    benchmarks/gpu.sh --cpu              the same on a CPU and a tiny model: tries every line but the kernels
    benchmarks/gpu.sh --only fp16 resume
    benchmarks/gpu.sh --commit HASH      in a copy without .git, of that commit; else its rows name none

Each part is a process of its own with a time limit, and writes its result at once, PART.json: a part that fails, hangs
or dies stops no other, and what is stopped loses nothing. It needs the packages of the tests; without
sentence-transformers its own numbers are taken alone. Rows of the speed table go to rows/ beside them:

    cp runs/gpu/rows/*.json benchmarks/rows/ && python benchmarks/tables.py --write
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # in place of benchmarks/, see speed.py

LIMITS_S: dict[str, float] = {  # of each part, in the order in which they run
    "tests": 80,
    "parity": 40,
    "fp16": 25,
    "resume": 50,
    "reference": 45,
    "batch-8": 100,
    "batch-256": 70,
    "graphs": 55,
    "profile": 30,
    "memory": 30,
}
ALL_S = 530  # of all together: nine minutes, less the start of Python
SHORTEST_S = 5  # a part is not started with less left


def main(argv: list[str]) -> int:
    """Exit status: 0; 1 if a part did not pass; 2 without a CUDA device."""
    begun, arguments = time.monotonic(), parse(argv)
    if arguments.part:
        return run_part(arguments, argv)
    if not arguments.cpu and not has_cuda():
        print("there is no CUDA device here; --cpu tries the script on a CPU", file=sys.stderr)
        return 2
    states = {}
    arguments.output.mkdir(parents=True, exist_ok=True)
    for part in arguments.only or LIMITS_S:
        left = (arguments.minutes * 60 if arguments.minutes else ALL_S) - (time.monotonic() - begun)
        limit = min(left, LIMITS_S[part] * (20 if arguments.cpu else 1))
        states[part] = in_a_process(part, limit, arguments, argv)
        print(f"{part}: {states[part]} ({time.monotonic() - begun:.0f} s)", flush=True)
    return 0 if set(states.values()) == {"passed"} else 1


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Correctness and speed on a GPU, in nine minutes.", allow_abbrev=False)
    parser.add_argument("--cpu", action="store_true", help="try it on a CPU with a tiny model; its numbers say nothing")
    parser.add_argument("--only", nargs="+", choices=LIMITS_S, help="run only these parts")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "gpu", help="folder of the results")
    parser.add_argument("--minutes", type=float, help="for all parts together; default: 8.8")
    parser.add_argument("--commit", help="what a tree without .git is a copy of; tables.py --check verifies it")
    parser.add_argument("--part", choices=LIMITS_S, help=argparse.SUPPRESS)  # run this one here
    arguments = parser.parse_args(argv)
    arguments.output = arguments.output.resolve()
    return arguments


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def in_a_process(part: str, limit: float, arguments: argparse.Namespace, argv: list[str]) -> str:
    """Run a part in a process of its own; return its state. What it prints is in PART.log."""
    result = arguments.output / f"{part}.json"
    result.unlink(missing_ok=True)
    if limit < SHORTEST_S:
        return write(result, {"part": part, "state": "not started: no time is left"})
    begun = time.monotonic()
    environment = os.environ | {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, __file__, *argv, "--part", part]
    with (arguments.output / f"{part}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            process.wait(limit)
            ended = f"died with exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            ended = f"stopped after {limit:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):  # it, and whatever it has started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if result.exists():
        return str(json.loads(result.read_text(encoding="utf-8"))["state"])
    return write(result, {"part": part, "state": ended, "seconds": time.monotonic() - begun})


def run_part(arguments: argparse.Namespace, argv: list[str]) -> int:
    """Run one part in this process and write its result."""
    from benchmarks import gpu_checks, gpu_speed
    from benchmarks.gpu_place import Place

    begun = time.monotonic()
    place = Place.here(arguments.cpu, arguments.output, shlex.join(["benchmarks/gpu.sh", *argv[:-2]]), arguments.commit)
    record: dict[str, Any] = {"part": arguments.part, "device": place.origin.gpu or "cpu"}
    try:
        record |= {"state": "passed", "found": (gpu_checks.PARTS | gpu_speed.PARTS)[arguments.part](place)}
    except Exception as error:
        traceback.print_exc()
        record |= {"state": f"failed: {type(error).__name__}: {error}"}
    record |= {"seconds": round(time.monotonic() - begun, 1), "origin": dataclasses.asdict(place.origin)}
    write(arguments.output / f"{arguments.part}.json", record)
    return int(record["state"] != "passed")


def write(path: Path, record: dict[str, Any]) -> str:
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return str(record["state"])


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the part is ended too
    sys.exit(main(sys.argv[1:]))
