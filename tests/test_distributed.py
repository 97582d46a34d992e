"""Several processes train what one process trains; a rank that dies or a signal to all loses nothing."""

from __future__ import annotations

import fnmatch
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
import torch._dynamo  # PyTorch imports it with the first optimizer: a second that a process need not take
from torch import Tensor, nn
from torch.distributed import TCPStore

from tests import tiny
from tests.runs import assert_equal, assert_same_run, rows, state, threads_of_gloo
from tests.scripts import SCRIPTS, Run, contents
from tests.tolerances import FLOAT64
from tsdae.autoencoder import TSDAE
from tsdae.config import TrainConfig
from tsdae.losses import LossSum
from tsdae.noise import Draw, delete
from tsdae.objectives import OBJECTIVES, ContrastiveTension, SimCSE, tsdae
from tsdae.packing import Batch
from tsdae.training import clip_gradients, gradient_norm, make_optimizer, train
from tsdae.utils import distributed
from tsdae.utils.signals import Interrupted

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: a fork server")

PATIENCE_S = 300.0  # machines may be slow and busy; what hangs is to be noticed all the same


class Partial(nn.Module):
    """An objective that leaves most of the decoder unused, and has an unused parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.idle = (nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))

    def forward(self, model: TSDAE, batch: Batch) -> LossSum:
        loss_B = (self.scale.sum() * model.encode(batch.noisy)).square().sum(1)
        return LossSum(loss_B.sum(), len(loss_B), "size")

    @staticmethod
    def counts(batch: Batch) -> dict[str, int]:
        return {"size": len(batch.noisy)}


class Remembers(nn.Module):
    """The paper's objective, weighted by what a buffer has seen: the lengths of this process's sentences."""

    counts = staticmethod(tsdae.counts)
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))

    def forward(self, model: TSDAE, batch: Batch) -> LossSum:
        if model.training:
            self.seen += len(batch.noisy.token_ids_T)
        return (1 + (self.seen / 1000).sin() / 2) * tsdae(model, batch)


class StopsAt(nn.Module):
    """The paper's objective, and a signal to this process alone in one of its steps, or in the next evaluation."""

    counts = staticmethod(tsdae.counts)

    def __init__(self, step: int, late: bool = False) -> None:
        super().__init__()
        self.left, self.late = step, late

    def forward(self, model: TSDAE, batch: Batch) -> LossSum:
        self.left -= model.training
        if self.left == 0 and not self.late:
            os.kill(os.getpid(), signal.SIGTERM)
        return tsdae(model, batch)

    def train(self, mode: bool = True) -> Self:
        if self.left == 0 and self.late and not mode:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().train(mode)


def print_seed(model: TSDAE, batch: Batch) -> LossSum:
    print("seed", torch.initial_seed(), file=sys.stderr)
    return tsdae(model, batch)


print_seed.counts = tsdae.counts


def rising(tokens: Any, word_T: Any, draw: Draw, ratio: float, vocabulary: Any) -> Any:
    """Deletion, from nothing at the first step to ``ratio`` at the fortieth."""
    return delete(tokens, word_T, draw, (ratio * np.minimum(1, draw.step_B / 40))[draw.sentence_W], vocabulary)


def process(rank: int, count: int, port: int, output: str, model: dict[str, Any], settings: dict[str, Any]) -> None:
    """One of ``count`` processes of a run, as torchrun starts them. Writes what it has learned to OUTPUT.RANK.pt."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    torch.set_num_threads(1)
    sys.stderr = open(f"{output}.{rank}.log", "a", buffering=1)  # noqa: SIM115  # open as long as the process
    os.dup2(sys.stderr.fileno(), 2)  # where PyTorch's C++ warns
    objectives: dict[str, Any] = {
        "partial": Partial(),
        "remembers": Remembers(),
        "seeds": print_seed,
        "simcse": SimCSE,
        "ct": ContrastiveTension,
        "bag of words": OBJECTIVES["bag_of_words"],
        "stops": StopsAt(9, late=rank == 0),  # it has heard from the other one by then
        "goes on": StopsAt(-1),  # its losses are summed in the same order
    }
    objective = objectives.get(settings.pop("objective", ""))
    recipe: dict[str, Any] = {
        **{"steps": 28, "batch_size": 8, "device": "cpu", "precision": "fp64", "learning_rate": 1e-3},
        **{"eval_every": 14, "save_every": 14, "output": output},
    }
    made = tiny.model(**({"dropout": 0.0, "attention_dropout": 0.0, "dtype": torch.float64} | model))
    code = 0
    try:
        noise = {"noise": rising, "noise_ratio": 0.8} if settings.pop("rising", False) else {}
        dataset = tiny.dataset(tiny.SENTENCES[: 8 - rank] if settings.pop("apart", False) else None, **noise)
        train(made, dataset, TrainConfig(**(recipe | settings)), objective, heldout=tiny.dataset())
    except Interrupted as stop:
        code = 128 + stop.signal
        os.kill(os.getpid(), signal.SIGTERM)  # later still: nothing is left to stop
    finally:
        torch.save(made.state_dict(), f"{output}.{rank}.pt")
    distributed.destroy_process_group()
    assert not threads_of_gloo(), "one that lets go of a tensor while Python shuts down aborts the process"
    sys.exit(code)


Start = Callable[..., list[int | None]]


def exit_codes(children: Sequence[BaseProcess]) -> list[int | None]:
    """Of processes that are started here; one that takes too long is killed, and its code says so."""
    for child in children:
        child.start()
    for child in children:
        child.join(PATIENCE_S)
        child.kill()
        child.join()
    return [child.exitcode for child in children]


@pytest.fixture
def start(server: ForkServerContext) -> Start:
    def started(count: int, output: Path, model: dict[str, Any] | None = None, **settings: Any) -> list[int | None]:
        """The exit codes of a run of so many processes."""
        # As torchrun's own, which has its port before the others are told of it.
        meeting = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        arguments = (count, meeting.port, str(output), model or {}, settings)
        return exit_codes([server.Process(target=process, args=(rank, *arguments)) for rank in range(count)])

    return started


def weights(output: Path, rank: int = 0) -> dict[str, Tensor]:
    """What a process has learned, without the key biases: their true gradient is zero, Adam makes noise of it."""
    found: dict[str, Tensor] = torch.load(f"{output}.{rank}.pt", weights_only=True)
    width = 24
    for name, value in found.items():
        if name.endswith("attention.project.bias"):
            value[width : 2 * width] = 0.0
    return found


def assert_close(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], **FLOAT64, msg=name)


CASES: dict[str, dict[str, Any]] = {
    "the paper's": {},
    "untied, fewer layers": {"model": {"tie": False, "decoder_layers": 2}},
    "mean": {"model": {"pooling": "mean"}},
    "micro-batches": {"accumulate": 2},
    "unused parameters": {"objective": "partial"},
    "a noise that follows the steps": {"rising": True, "accumulate": 2},
    "frozen": {"freeze": "encoder.bert.embeddings.*,*.bias"},
    "simcse": {"objective": "simcse"},  # the negatives are those of all processes
    "ct": {"objective": "ct", "model": {"pooling": "mean"}},
    "bag of words": {"objective": "bag of words", "accumulate": 2},
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=() if name in ("the paper's", "simcse") else pytest.mark.slow)
        for name, case in CASES.items()
    ],
)
def test_two_processes_are_one_of_twice_the_batch(case: dict[str, Any], start: Start, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert start(1, one, **case) == [0]
    assert start(2, two, **case, batch_size=4) == [0, 0]
    before = tiny.model(**case.get("model", {})).state_dict()
    assert any((value != before[name]).any() for name, value in weights(one).items())
    assert_close(weights(one), weights(two))
    made = torch.load(f"{two}.0.pt", weights_only=True)
    assert_equal(made, torch.load(f"{two}.1.pt", weights_only=True), "ranks")
    # The log, the best model and the held-out loss are those of one process, written once.
    for first, second in zip(rows(one), rows(two), strict=True):
        assert first.keys() == second.keys()
        assert list(first.values()) == pytest.approx(list(second.values()), rel=1e-5)
    assert contents(one).keys() == contents(two).keys()
    for pattern in case.get("freeze", "").split(","):
        frozen = fnmatch.filter(before, pattern)
        assert all(torch.equal(made[name], before[name]) for name in frozen)
        assert bool(frozen) == ("freeze" in case)


@pytest.mark.slow  # three runs, two of them of two processes
@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(first: int, then: int, start: Start, tmp_path: Path) -> None:
    assert start(1, tmp_path / "whole") == [0]
    assert start(first, tmp_path / "run", batch_size=8 // first, steps=23) == [0] * first
    assert start(then, tmp_path / "run", batch_size=8 // then, resume=True) == [0] * then
    assert_close(weights(tmp_path / "whole"), weights(tmp_path / "run"))


@pytest.mark.slow  # three runs of two processes
def test_a_signal_to_one_process_stops_all_and_the_run_goes_on_bit_for_bit(start: Start, tmp_path: Path) -> None:
    """With dropout, whose masks differ between the processes and are the same again at the same number of them."""
    settings: dict[str, Any] = {"batch_size": 4, "precision": "fp32", "objective": "stops"}
    model = {"dropout": 0.2, "attention_dropout": 0.2, "dtype": torch.float32}
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert start(2, whole, model, **(settings | {"objective": "goes on"})) == [0, 0]
    assert start(2, run, model, **settings) == [143, 143]
    assert state(run)["step"] == 9, "the others are asked in every step"
    assert start(2, run, model, **(settings | {"objective": "goes on", "resume": True})) == [0, 0]
    assert_same_run(whole, run)


@pytest.mark.slow  # three runs of two processes
def test_buffers_are_those_that_a_checkpoint_holds(start: Start, tmp_path: Path) -> None:
    """The first process's, in every process, so that a resumed run goes on from the same ones."""
    settings: dict[str, Any] = {"batch_size": 4, "objective": "remembers"}
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert start(2, whole, **settings) == [0, 0]
    assert start(2, run, **settings, steps=23) == [0, 0]
    assert start(2, run, **settings, resume=True) == [0, 0]
    assert_equal(weights(whole), weights(run), "weights")


def test_every_process_and_step_has_masks_of_its_own(start: Start, tmp_path: Path) -> None:
    """And the same ones again in another run: dropout is keyed by (seed, step, process) as the noise is by its keys.

    The objective is a function of one's own: PyTorch does not warn that all parameters of it are used.
    """
    seeds = []
    for name in ("first", "second"):
        assert start(2, tmp_path / name, steps=5, batch_size=4, objective="seeds", eval_every=0) == [0, 0]
        said = [Path(f"{tmp_path / name}.{rank}.log").read_text() for rank in range(2)]
        assert not any("find_unused_parameters" in log for log in said)
        seeds.append([log.split("seed ")[1:] for log in said])
    (first, second), again = seeds
    assert len({seed.split()[0] for seed in first + second}) == 10
    assert [[seed.split()[0] for seed in rank] for rank in again] == [
        [seed.split()[0] for seed in rank] for rank in (first, second)
    ]


def test_processes_that_disagree_are_found(server: ForkServerContext, tmp_path: Path) -> None:
    children = [server.Process(target=disagree, args=(rank, str(tmp_path / "store"))) for rank in range(2)]
    assert exit_codes(children) == [7, 7]


def meet(rank: int, store: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)


def disagree(rank: int, store: str) -> None:
    meet(rank, store)
    model = nn.Linear(3, 3)
    nn.init.constant_(model.weight, 0.5)
    nn.init.zeros_(model.bias)
    distributed.check_same_weights(model)
    if rank == 1:
        with torch.no_grad():
            model.weight[1, 2] += 1e-7
    try:
        distributed.check_same_weights(model)
    except ValueError as error:
        sys.exit(7 if "the processes disagree about the weights: ranks [1] differ" in str(error) else 8)


def test_gradients_are_clipped_alike_under_any_number_of_threads(server: ForkServerContext, tmp_path: Path) -> None:
    children = [server.Process(target=clip, args=(rank, str(tmp_path / "store"))) for rank in range(2)]
    codes = exit_codes(children)
    if codes == [9, 9]:
        pytest.skip("one thread and two sum to the same bits here")
    assert codes == [7, 7]


def clip(rank: int, store: str) -> None:
    """Ends with 7 if the norms by which two processes of 1 and of 2 threads clip agree, where their own do not."""
    meet(rank, store)
    torch.set_num_threads(1 + rank)
    model = nn.Linear(384, 30_000, bias=False)
    model.weight.grad = torch.randn(30_000, 384, generator=torch.Generator().manual_seed(0))
    try:
        distributed.check_equal(str(float(gradient_norm([model.weight.grad]))), "the premise")
        sys.exit(9)
    except ValueError:
        norm = clip_gradients(make_optimizer(model, 1e-3, 0.0), 1.0)
    distributed.check_equal(str(float(norm)), "the norm")
    sys.exit(7)


def test_processes_with_other_texts_do_not_train(start: Start, tmp_path: Path) -> None:
    assert start(2, tmp_path / "run", apart=True) == [1, 1]
    for rank in range(2):
        said = Path(f"{tmp_path / 'run'}.{rank}.log").read_text()
        assert "the processes disagree about corpus_fingerprint: ranks [1] differ" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "command",
    [
        "prepare text.txt --model model --output corpus",
        "pretrain text.txt --output made",
        "ablate --output a --grid tie=no",
    ],
)
def test_what_is_one_process_says_so_under_torchrun(
    command: str, run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    before = contents(place)
    script, flags = command.split(maxsplit=1)
    result = run(script, flags)
    assert result.code == 2
    assert f"tsdae {script} does not run under torchrun; run tsdae {script}" in result.err
    assert contents(place) == before


@pytest.mark.parametrize("name", ["-", "pipe"])
def test_processes_do_not_share_a_stream(name: str, run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(place / "pipe")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = run("train", f"--corpus {name} --model model --output run")
    assert (result.code, "is a stream, which several processes cannot share" in result.err) == (2, True)


def test_objectives_without_counts_need_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "init_process_group", lambda: None)
    with pytest.raises(ValueError, match=r"or several processes, an objective needs an attribute `counts"):
        train(tiny.model(), tiny.dataset(), TrainConfig(), lambda model, batch: tsdae(model, batch))


# ---------------------------------------------------------------------------------------------------------------
# Under torchrun


@pytest.fixture
def torchrun(place: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    jobs: list[subprocess.Popen[str]] = []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPTS.parent)}

    def begun(arguments: str) -> subprocess.Popen[str]:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command = [*launcher, str(SCRIPTS / "train.py"), *arguments.split()]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        jobs.append(subprocess.Popen(command, cwd=place, env=environment, **pipes))
        return jobs[-1]

    yield begun
    for job in jobs:
        if job.poll() is None:  # a test has failed; torchrun ends its processes when it is told to
            job.terminate()
            job.communicate(timeout=PATIENCE_S)


@pytest.mark.slow
def test_torchrun_stops_resumes_and_ends_when_a_process_dies(
    place: Path, torchrun: Callable[[str], subprocess.Popen[str]]
) -> None:
    """The whole way, as a user goes it: stopped by SIGTERM, resumed, one process killed, resumed again."""
    (place / "mine.py").write_text(
        "import atexit, os, time\n\nfrom tests.runs import threads_of_gloo\nfrom tsdae.objectives import tsdae\n\n\n"
        "def slow(model, batch):\n    time.sleep(0.02)\n    return tsdae(model, batch)\n\n\n"
        "slow.counts = tsdae.counts\nleft = open('threads.' + os.environ['RANK'], 'w')\n"
        "atexit.register(lambda: print(threads_of_gloo(), file=left, flush=True))\n"
    )
    flags = "--corpus text.txt --model model --device cpu --precision fp32 --batch-size 1 --heldout 2 --steps 200"
    job = torchrun(f"{flags} --save-every 20 --eval-every 100 --output run --objective mine.py:slow")
    wait_for_steps(place / "run", 10, job)
    job.send_signal(signal.SIGTERM)
    out, _ = job.communicate(timeout=PATIENCE_S)
    command = "torchrun --nproc-per-node 2 -m tsdae train --resume --output run --objective mine.py:slow"
    assert f"checkpoint and model are in run; resume with: {command}" in out
    assert "2 processes, each with batches of 1" in out
    assert [(place / f"threads.{rank}").read_text() for rank in range(2)] == ["[]\n", "[]\n"]
    stopped_at = state(place / "run")["step"]
    assert 10 <= stopped_at < 200

    job = torchrun(command.split(" train ")[1])
    wait_for_steps(place / "run", stopped_at + 25, job)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    workers = [int(pid) for pid in children if "train.py" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    begun = time.monotonic()
    out, _ = job.communicate(timeout=PATIENCE_S)
    assert time.monotonic() - begun < PATIENCE_S
    assert job.returncode != 0
    assert "Signal 9 (SIGKILL)" in out
    assert state(place / "run")["step"] >= stopped_at, "the last checkpoint is whole"

    job = torchrun(command.split(" train ")[1])
    out, _ = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 0, out
    assert out.count("The trained encoder is run/encoder") == 1
    assert [(place / f"threads.{rank}").read_text() for rank in range(2)] == ["[]\n", "[]\n"]
    assert json.loads((place / "run" / "config.json").read_text())["finished"] == 200
    assert [row["step"] for row in rows(place / "run") if "loss" in row] == list(range(10, 201, 10))


def wait_for_steps(folder: Path, steps: int, job: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not (logged := rows(folder)) or logged[-1]["step"] < steps:
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.02)
