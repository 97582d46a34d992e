"""A whole run from its settings: text, model, training, and the tables that show what training did."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import signal
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch

from tsdae.autoencoder import TSDAE
from tsdae.commands import summary
from tsdae.commands.card import write_card
from tsdae.commands.evaluate import entry
from tsdae.commands.metrics import check_metrics, evaluation, heldout_metrics
from tsdae.commands.preflight import check, is_prepared, objective_of
from tsdae.commands.recipes import cut_in_the_dip, what_to_try, with_recipe
from tsdae.config import DataConfig, MethodConfig, TrainConfig
from tsdae.dataset import DenoisingDataset
from tsdae.encoder import SentenceEncoder
from tsdae.evaluation.pairs import Pairs, load_stsb
from tsdae.evaluation.scores import Scores
from tsdae.evaluation.scores import table as table_of
from tsdae.evaluation.sts import evaluate_sts
from tsdae.freezing import freeze
from tsdae.hub.downloads import MINI
from tsdae.hub.model_folder import model_folder, read_sentence_settings
from tsdae.noise import Noise
from tsdae.objectives import HoldOn, Objective
from tsdae.objectives.interface import build, check_batch_size, try_out, views_of
from tsdae.run.folder import holds_run, locked_run, next_run_folder
from tsdae.run.resume import best_metric, finished_line, resume_command, resumed
from tsdae.run.trackers import Trackers
from tsdae.text.corpus import Corpus, model_in_words
from tsdae.text.preparation import build_corpora, open_prepared
from tsdae.text.reading import Texts, load_sentences, open_texts
from tsdae.training import train
from tsdae.utils import distributed
from tsdae.utils.device import choose_device, choose_precision, describe
from tsdae.utils.files import check_can_write, write_json
from tsdae.utils.imports import names_function
from tsdae.utils.plural import counted
from tsdae.utils.progress import bars_about, print_note
from tsdae.utils.rng import keyed
from tsdae.utils.signals import Interrupted

FEWEST_JUDGED = 8  # held-out sentences: of fewer, one sentence moves retrieval and rank by much
SAMPLE = 0x5A3B  # a word in the key that draws a part of the sample corpus
Row = tuple[str, str, dict[str, Scores]]  # of the final table: what was scored, its pooling, {split: scores}


def train_or_resume(data: DataConfig, method: MethodConfig, config: TrainConfig, given: set[str]) -> Path:
    """Run ``tsdae train``; with --resume the settings are those of the run, beside those ``given`` now."""
    data, method, config = resumed(data, method, config, given)
    method.check_used(given)  # also where a setting is given as what it is by default
    return run_training(data, method, config, given=given)


def run_training(
    data: DataConfig,
    method: MethodConfig,
    config: TrainConfig,
    table: bool = True,
    given: Collection[str] | None = None,
) -> Path:
    """Train and evaluate as the three configurations say; print notes and tables; return the run folder.

        run = run_training(DataConfig(corpus="text.txt"), MethodConfig(model="mini"), TrainConfig(steps=100))

    given: the settings that somebody has chosen; the others are filled from a recipe (see `recipes`). None: no recipe.
    table: also score labelled pairs before and after training, not only on the way.
    ValueError says what cannot be done, before anything is downloaded or written.
    """
    check(data, method, config)
    if config.output is None:
        check_can_write(next_run_folder(), "the run folder")
    if config.resume and (finished := finished_line(data, config)):
        print_note(finished)
        return Path(str(config.output))
    if config.threads is not None:
        torch.set_num_threads(config.threads)  # here already: the untrained model is scored before training
    distributed.init_process_group()

    # text and model
    name = method.model or MINI
    prepared = open_prepared(str(data.corpus)) if is_prepared(data) else None
    texts = Texts([]) if prepared or data.corpus is None else open_texts(data.corpus, data.column)
    with contextlib.closing(texts):
        texts.look()  # for the errors that it can have, before anything is downloaded
        with distributed.rank_zero_first():
            folder, stsb = model_folder(name), _stsb(data)
        lines: list[str] = []
        if given is not None and not (config.resume and holds_run(Path(str(config.output)))):
            method, config, lines = with_recipe(name, method, config, given)  # here: flags may contradict each other
            if method.hold_on:
                check_batch_size(HoldOn, config.batch_size, f"--hold-on {method.hold_on:g}")
        encoder = _encoder(folder, method)
        model = TSDAE(encoder, method.tie, method.decoder_layers, config.seed, method.decoder_input_noise)
        own_pooling = read_sentence_settings(folder).pooling  # None: it is no sentence model
        objective = _objective(name, own_pooling, model, method, config.seed)
        if config.freeze is not None:
            freeze(model, objective, config.freeze)  # here already: what matches nothing is said before hours of work
        if data.corpus is None:
            texts = Texts(sample_sentences(stsb, data.limit))
        corpus, heldout_corpus = prepared or build_corpora(texts, data.corpus or "", data, encoder.tokenizer)
    corpus.check_tokenizer(encoder.tokenizer, model_in_words(name, method.add_tokens))

    # datasets
    dataset = _dataset(corpus, encoder, data, method, config.seed)
    heldout = _dataset(heldout_corpus, encoder, data, method, 0, dataset.noise) if heldout_corpus else None
    for line in lines:  # here: an error until now is one line
        print_note(line)
    _print_plan(name, own_pooling, dataset, heldout, method, config)

    # metrics
    splits, evaluate, metrics = evaluation(data, stsb, encoder)
    metrics += heldout_metrics(heldout, _terms(objective, model, dataset, heldout or dataset, method, config))
    check_metrics(config, best_metric(config, objective, heldout), metrics)
    rows: list[Row] = []
    if table and splits and distributed.is_rank_zero():
        print_note("scoring the untrained model")
        for pooling in dict.fromkeys(("mean", own_pooling or method.pooling, method.pooling)):
            untrained = copy.copy(encoder)
            untrained.pooling = pooling
            rows.append((f"{name}, {pooling}, untrained", pooling, _scores(untrained, splits)))

    # training
    output = config.output or distributed.broadcast_object(lambda: str(next_run_folder()))
    config = dataclasses.replace(config, output=output)
    command = resume_command(data, method, output)
    if given is not None:
        print_note(f"if it is stopped, resume it with: {command}")
    settings = dataclasses.asdict(data) | dataclasses.asdict(method) | {"model": name}
    settings["words"] = data.words if prepared else corpus.words  # a prepared corpus says it itself
    trackers = Trackers(config.trackers)
    try:
        with contextlib.ExitStack() as until_the_end:
            with distributed.rank_zero_first():  # so that nobody else writes what all of them read
                if distributed.is_rank_zero():
                    until_the_end.enter_context(locked_run(Path(output)))
            train(model, dataset, config, objective, evaluate, heldout, settings, trackers=trackers)
        distributed.destroy_process_group()

        # results
        if distributed.is_rank_zero():
            with contextlib.closing(trackers):
                judged = method.objective != "mlm" and heldout is not None and len(heldout) >= FEWEST_JUDGED
                advice = what_to_try(method, own_pooling is not None) if judged else None
                _print_results(Path(output), name, data, method, rows, encoder, splits, trackers, advice)
            trained = str(Path(output) / "encoder")
            print(f"The trained encoder is {trained}; sentence-transformers loads it: SentenceTransformer({trained!r})")
    except Interrupted as stop:
        raise Interrupted(stop.signal, f"{stop}; resume with: {command}") from stop
    except KeyboardInterrupt as stop:  # a second one, or one after the last step
        if distributed.world_size() > 1 or not holds_run(Path(output)):
            raise
        raise Interrupted(signal.SIGINT, f"interrupted; resume with: {command}") from stop
    except OSError as error:
        if isinstance(error, BrokenPipeError) or not holds_run(Path(output)):  # a pipe's reader has read enough
            raise
        raise OSError(f"{error}; the latest checkpoint is intact, resume with: {command}") from error
    return Path(output)


# ---------------------------------------------------------------------------------------------------------------
# Text and model


def _stsb(data: DataConfig) -> dict[str, Pairs]:
    """Load STS-B where the run needs it; empty where it does not, or where own text can be trained on without it."""
    if data.corpus is None:
        return load_stsb()
    if data.evaluate != "stsb":
        return {}
    try:
        return load_stsb()
    except ValueError as error:
        print_note(f"{error}; continuing without it, with metrics on held-out sentences")
        return {}


def sample_sentences(stsb: dict[str, Pairs], limit: int | None = None) -> list[str]:
    """Return the distinct sentences of STS-B's train split that occur in neither dev nor test; no label is read.

    limit: so many of them, drawn at random with a fixed key, since STS-B is in the order of its sources.
    """
    seen = {sentence for split in ("dev", "test") for sentence in stsb[split].first + stsb[split].second}
    distinct = dict.fromkeys(stsb["train"].first + stsb["train"].second)
    kept = [sentence for sentence in distinct if sentence not in seen]
    print_note(
        f"sample corpus: the {len(kept):,} of {len(distinct):,} distinct sentences of STS-B train that are in neither "
        "dev nor test"
    )
    if limit is not None and limit < len(kept):
        chosen = np.sort(keyed(SAMPLE, np.arange(len(kept))).argsort()[:limit])
        print_note(f"--limit: {limit:,} of them, drawn at random")
        return [kept[k] for k in chosen]
    return kept


def _encoder(folder: Path, method: MethodConfig) -> SentenceEncoder:
    """Load the model, with the method's pooling, dropout and added tokens."""
    encoder = SentenceEncoder.from_pretrained(folder, method.pooling)
    encoder.bert.set_dropout(method.dropout, method.attention_dropout)
    if method.add_tokens is not None:
        added = encoder.add_tokens(load_sentences(method.add_tokens))
        print_note(f"{len(added):,} new tokens of {method.add_tokens}, each initialised with the mean of its pieces")
    return encoder


def _dataset(
    corpus: Corpus,
    encoder: SentenceEncoder,
    data: DataConfig,
    method: MethodConfig,
    seed: int,
    noise: Noise | None = None,
) -> DenoisingDataset:
    """Return a dataset. Held-out sentences have one seed for all runs, and a noise made from the training text."""
    max_length = min(data.max_length, encoder.bert.config.longest_sentence)
    return DenoisingDataset(corpus, encoder.tokenizer, noise or method.noise, method.noise_ratio, seed, max_length)


def _print_plan(
    name: str,
    own_pooling: str | None,
    dataset: DenoisingDataset,
    heldout: DenoisingDataset | None,
    method: MethodConfig,
    config: TrainConfig,
) -> None:
    """Print what will be trained on what, and what may be wrong with it."""
    rows, size = len(dataset), config.step_size
    steps = config.steps_for(rows)
    epochs = steps * size / rows
    advice = "" if epochs >= 1 or config.epochs is not None else "; --epochs 1 reads each sentence once"
    device = choose_device(config.device)
    print_note(describe(device, choose_precision(config.precision, device)))
    if distributed.world_size() > 1:
        print_note(f"{distributed.world_size()} processes, each with batches of {config.batch_size}")
    held_out = len(heldout) if heldout else 0
    print_note(f"model {name}; {counted(rows, 'sentence')} to train on, {held_out:,} held out")
    if config.epochs is not None:
        by_epochs = dataclasses.replace(config, min_steps=0).steps_for(rows)
        least = f", fewer than the minimum of {steps:,}" if by_epochs < steps else ""
        print_note(f"epochs: {config.epochs:g}, which is {counted(by_epochs, 'step')}{least}")
    passes = f"{epochs:.3g}" if epochs < 100 else f"{epochs:,.0f}"
    print_note(f"{counted(steps, 'step')} x {size} = {steps * size:,} sentences (epochs: {passes}){advice}")
    if truncated := dataset.truncated:
        print_note(f"sentences truncated to {dataset.max_length} tokens: {truncated:,}")
    for line in dataset.corpus.notes():
        print_note(line)
    if own_pooling is None and (few := cut_in_the_dip(name, method, steps, size)):
        print_note(few)
    if config.early_stop and steps <= config.min_steps:
        print_note(
            f"--early-stop cannot end this run: evaluations before step {config.min_steps:,} do not count; give a "
            "smaller --min-steps"
        )
    if held_out < FEWEST_JUDGED:
        print_note(f"fewer than {FEWEST_JUDGED} sentences are held out: whether the run harms is not judged")
    if method.hold_on:
        print_note(
            f"--hold-on: similarity distillation from the initial {name} ({own_pooling} pooling), between the "
            "sentences of each process's batch"
        )
    if own_pooling is not None:
        advice = "; --hold-on 100 loses less" if method.objective == "tsdae" and not method.hold_on else ""
        print_note(
            f"{name} is already a sentence model, and further training can make it worse: compare before and after "
            f'with `tsdae evaluate` (README, "When to use it"){advice}'
        )


# ---------------------------------------------------------------------------------------------------------------
# Objective


def _objective(name: str, own_pooling: str | None, model: TSDAE, method: MethodConfig, seed: int) -> Objective:
    """Return the objective. own_pooling: of the model as it came."""
    objective = build(objective_of(method), model, seed)
    if method.hold_on:
        if own_pooling is None:
            why = f"needs a sentence model, but {name} is a raw model: its folder names no pooling"
            if method.recipe == "adapt":
                raise ValueError(f"--recipe adapt {why}; choose another recipe, or give --hold-on 0")
            raise ValueError(f"--hold-on {why}")
        start = copy.deepcopy(model.encoder)
        start.pooling = own_pooling
        objective = HoldOn(start, method.hold_on)
    return objective


def _terms(
    objective: Objective,
    model: TSDAE,
    dataset: DenoisingDataset,
    measured: DenoisingDataset,
    method: MethodConfig,
    config: TrainConfig,
) -> list[str]:
    """Return the names of the terms of the objective's loss; one of your own is tried on a batch of training.

    measured: sentences on which the terms are to be measured; a single one may have fewer of them.
    """
    if not names_function(method.objective):
        first = measured.order(0, min(config.batch_size, len(measured)))
        return list(objective.counts(measured.batch(*first, views_of(objective))))  # type: ignore[attr-defined]  # ours
    batch = dataset.batch(*dataset.order(0, config.batch_size), views_of(objective))
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    model.to(device, torch.float64 if precision == "fp64" else torch.float32)
    terms = list(try_out(objective, model, batch, precision).terms)
    print_note(
        f"objective {method.objective}: terms {', '.join(terms)}; not compiled; terms that compare sentences see only "
        "the batch of their process"
    )
    return terms


# ---------------------------------------------------------------------------------------------------------------
# Results


def _scores(encoder: SentenceEncoder, splits: dict[str, Pairs]) -> dict[str, Scores]:
    scores = {}
    for split, pairs in splits.items():
        with bars_about(split if split == "pairs" else f"STS-B {split}"):
            scores[split] = evaluate_sts(functools.partial(encoder.encode, show_progress=True), pairs)
    return scores


def _print_results(
    run: Path,
    name: str,
    data: DataConfig,
    method: MethodConfig,
    rows: list[Row],
    encoder: SentenceEncoder,
    splits: dict[str, Pairs],
    trackers: Trackers,
    advice: str | None,
) -> None:
    """Print tables and verdicts of a run that has ended; write evaluation.json.

    rows: of the untrained model. advice: what to try if the run has harmed; None: that is not judged.
    """
    log = summary.measured(run) if (run / "metrics.jsonl").is_file() else []
    log = log if log and log[0]["step"] == 0 else log[-1:]  # resumed from a run that was not evaluated at its start
    if rows:
        trained_by = "TSDAE" if method.objective == "tsdae" else method.objective
        starts = {"[CLS] vector" if pooling == "cls" else pooling: scores for _, pooling, scores in rows}
        rows = [*rows, (f"{name}, {method.pooling}, after {trained_by}", method.pooling, _scores(encoder, splits))]
        found = summary.gains(rows[-1][2], starts)
        entries = [entry(*row) for row in rows]
        trackers.table(entries)
        write_json(run / "evaluation.json", [*entries[:-1], entries[-1] | {"against_untrained": found}])
        print(table_of([(row_name, scores) for row_name, _, scores in rows]))
        if data.corpus is None:
            print(summary.for_orientation())
        if line := summary.over_the_steps(log):
            print(line)
        print(summary.gain_line(trained_by, found))
    if compared := summary.before_and_after(log):
        print(compared)
    if advice and (line := summary.harm(log, run, advice)):
        print(line)
    if (run / "encoder").is_dir():
        write_card(run, name, encoder, rows, log)
    if line := summary.draw_curve(log, run / "curve.png"):
        print(line)
