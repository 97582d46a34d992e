"""What a run measures on its way: metrics of labelled pairs, of the user's own function, and of held-out sentences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tsdae.config import DataConfig, TrainConfig
from tsdae.dataset import DenoisingDataset
from tsdae.encoder import SentenceEncoder
from tsdae.evaluation.pairs import Pairs, load_pairs
from tsdae.evaluation.sts import evaluate_sts
from tsdae.evaluation.validation import GEOMETRY, RECONSTRUCTION, check_name
from tsdae.losses import COLUMNS
from tsdae.run.folder import holds_run
from tsdae.utils import distributed
from tsdae.utils.imports import named_function, names_function
from tsdae.utils.plural import counted
from tsdae.utils.progress import print_note


def evaluation(
    data: DataConfig, stsb: dict[str, Pairs], encoder: SentenceEncoder
) -> tuple[dict[str, Pairs], Callable[[Any], dict[str, float]] | None, list[str]]:
    """Return what the final table shows, what is called during training, and the names of its metrics."""
    evaluate = data.evaluate or ("stsb" if data.corpus is None else "heldout")
    if evaluate in ("heldout", "none") or (evaluate == "stsb" and not stsb):
        return {}, None, []
    if evaluate == "stsb":
        splits, watched, metric = {split: stsb[split] for split in ("dev", "test")}, stsb["dev"], "stsb_dev"
    elif names_function(evaluate):
        function = named_function(evaluate, "evaluate")
        return {}, function, distributed.broadcast_object(lambda: _names_of(function, evaluate, encoder))
    else:
        watched, metric = load_pairs(evaluate), "pairs"
        splits = {"pairs": watched}
    return splits, lambda encoder: {metric: evaluate_sts(encoder, watched, intervals=False).spearman}, [metric]


def _names_of(function: Callable[[Any], dict[str, float]], name: str, encoder: SentenceEncoder) -> list[str]:
    """Call the user's function once, before hours of training depend on it; return the names of its metrics."""
    print_note(f"calling {name} on the untrained model")
    metrics = function(encoder.eval())
    if not isinstance(metrics, dict) or not all(isinstance(value, (int, float)) for value in metrics.values()):
        raise ValueError(f"--evaluate {name} must return {{name: number}}, it returned {metrics!r}")
    if taken := [metric for metric in metrics if metric in COLUMNS]:
        raise ValueError(f"--evaluate {name}: metrics.jsonl has a column {taken[0]}; give the metric another name")
    return list(metrics)


def heldout_metrics(heldout: DenoisingDataset | None, terms: list[str]) -> list[str]:
    """Return the names of the metrics on held-out sentences, of an objective with these terms."""
    if heldout is None:
        return []
    names = ["heldout_loss", *(f"heldout_{term}_loss" for term in terms if len(terms) > 1)]
    if len(heldout) > 1:
        names += [*(RECONSTRUCTION if "reconstruction" in terms else ()), *GEOMETRY]
    return names


def check_metrics(config: TrainConfig, best: str, metrics: list[str]) -> None:
    """Print what is measured; ValueError if --best or --early-stop names something else."""
    check_name("--early-stop", config.early_stop, metrics)
    if not (config.resume and holds_run(Path(str(config.output)))):
        check_name("--best", config.best, metrics)
    if best not in metrics:
        print_note("no sentences are held out: best/ is not written")
    if metrics and config.eval_every:
        kept = f"; best/ is chosen by {best}" if best in metrics else ""
        print_note(
            f"evaluated before training and every {counted(config.eval_every, 'step')}: {', '.join(metrics)}{kept}"
        )
