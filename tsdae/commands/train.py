"""A whole run from its settings: corpus, model, training, and the table that shows what training did."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tsdae.autoencoder import TSDAE
from tsdae.commands import summary
from tsdae.commands.evaluate import entry, score
from tsdae.commands.preflight import check, is_prepared, objective_of
from tsdae.commands.recipes import cut_in_the_dip, with_recipe
from tsdae.config import DataConfig, MethodConfig, TrainConfig
from tsdae.dataset import DenoisingDataset
from tsdae.encoder import SentenceEncoder
from tsdae.evaluation.pairs import Pairs, load_pairs, load_stsb
from tsdae.evaluation.scores import Scores
from tsdae.evaluation.scores import table as table_of
from tsdae.evaluation.sts import evaluate_sts
from tsdae.evaluation.validation import GEOMETRY, RECONSTRUCTION, check_names
from tsdae.hub.downloads import MINI
from tsdae.hub.model_folder import model_folder, read_sentence_settings
from tsdae.objectives import HoldOn
from tsdae.objectives.interface import build, try_out, views_of
from tsdae.run.folder import holds_run, locked_run, next_run_folder
from tsdae.run.resume import best_metric, finished_line, resume_command
from tsdae.text.corpus import Corpus, model_in_words
from tsdae.text.preparation import build_corpora, open_prepared
from tsdae.text.reading import Texts, load_sentences, open_texts
from tsdae.training import train
from tsdae.utils import distributed
from tsdae.utils.device import choose_device, choose_precision, describe
from tsdae.utils.files import write_json
from tsdae.utils.imports import named_function, names_function
from tsdae.utils.progress import print_note
from tsdae.utils.rng import keyed
from tsdae.utils.signals import Interrupted

ADVICE = (
    "Train longer (--epochs 3), since the vectors of a raw model get worse before they get better; or read them by "
    "--pooling mean; or, from a finished sentence model, --hold-on 100."
)
SAMPLE = 0x5A3B  # a word in the key that draws a part of the sample corpus


def run_training(
    data: DataConfig,
    method: MethodConfig,
    config: TrainConfig,
    table: bool = True,
    given: Collection[str] | None = None,
) -> Path:
    """Trains and evaluates as the three configurations say; prints notes and tables; returns the run folder.

    given: the settings that somebody has chosen; the others are filled from a recipe (see `recipes`). None: no recipe.
    table: whether labelled pairs are scored before and after as well, not only on the way.
    ValueError says what cannot be done, before anything is downloaded or written.
    """
    check(data, method, config)
    if config.resume and (finished := finished_line(data, config)):
        print_note(finished)
        return Path(str(config.output))
    if config.threads is not None:
        torch.set_num_threads(config.threads)  # here already: the untrained model is scored before training
    distributed.init_process_group()
    name = method.model or MINI
    prepared = open_prepared(str(data.corpus)) if is_prepared(data) else None
    texts = Texts([]) if prepared or data.corpus is None else open_texts(data.corpus, data.column)
    with contextlib.closing(texts):
        texts.look()  # for the errors that it can have, before anything is downloaded
        with distributed.rank_zero_first():
            folder = model_folder(name)
            stsb = _stsb(data)
        as_published = SentenceEncoder.from_pretrained(folder)
        as_published.bert.set_dropout(method.dropout, method.attention_dropout)
        encoder = SentenceEncoder(
            as_published.pretrained,
            as_published.tokenizer,
            method.pooling,
            as_published.max_length,
            as_published.normalize,
        )
        if method.add_tokens is not None:
            added = encoder.add_tokens(load_sentences(method.add_tokens))
            print_note(f"{len(added):,} new tokens of {method.add_tokens}, each begun as the mean of its pieces")
        model = TSDAE(encoder, method.tie, method.decoder_layers, config.seed, method.decoder_input_noise)
        corpus, heldout_corpus = prepared or build_corpora(
            texts if data.corpus else Texts(sample_sentences(stsb, data.limit)),
            data.corpus or "",
            data,
            encoder.tokenizer,
        )
    own_pooling = read_sentence_settings(folder).pooling
    resumes = config.resume and holds_run(Path(str(config.output)))
    notes: list[str] = []
    if given is not None and not resumes:
        method, config, notes = with_recipe(name, method, config, given)
    corpus.check_tokenizer(encoder.tokenizer, model_in_words(name, method.add_tokens))
    dataset = _dataset(corpus, encoder, data, method, config.seed)
    heldout = _dataset(heldout_corpus, encoder, data, method, 0) if heldout_corpus else None  # the same for all seeds
    for note in notes:
        print_note(note)
    _print_plan(name, dataset, heldout, config)
    if method.objective == "tsdae" and method.recipe != "auto":
        few = cut_in_the_dip(method.recipe, config.steps_for(len(dataset)), config.step_size)
        if few is not None:
            print_note(few)
    if own_pooling is not None:
        advice = "; --hold-on 100 keeps more of it" if method.objective == "tsdae" and not method.hold_on else ""
        print_note(
            f"{name} is a sentence model already, and adapting such a model can harm it: compare before and after "
            f'(scripts/evaluate.py, README, "When to use it"){advice}'
        )

    objective = build(objective_of(method), model, config.seed)
    if method.hold_on:
        if own_pooling is None:
            raise ValueError(f"--hold-on needs a sentence model, and the folder of {name} names no pooling")
        start = copy.deepcopy(encoder)
        start.pooling = own_pooling
        objective = HoldOn(start, method.hold_on)
        print_note(
            f"holding on to {name} as it is now, read by {own_pooling} pooling: its similarities between the sentences "
            "of one batch of one process"
        )
    batch = dataset.batch(*dataset.order(0, config.batch_size), views_of(objective))
    if not names_function(method.objective):
        terms = list(objective.counts(batch))  # type: ignore[attr-defined]  # ours have it
    else:
        terms = list(try_out(objective, model, batch).terms)
        print_note(
            f"objective {method.objective} is your own and runs eagerly; its terms: {', '.join(terms)}. A term that "
            "compares sentences with each other sees those of one batch of one process"
        )
    splits, evaluate, measures = _evaluation(data, stsb, encoder)
    measures += _heldout_measures(heldout, terms)
    _check_measures(config, best_metric(config, objective, heldout), measures)
    rows: list[tuple[str, str, dict[str, Scores]]] = []
    if table and splits and distributed.is_rank_zero():
        print_note("scoring the untrained model")
        for pooling in dict.fromkeys(("mean", own_pooling or method.pooling, method.pooling)):
            start = copy.copy(encoder)
            start.pooling = pooling
            rows.append((f"{name}, {pooling}, untrained", pooling, _score(start, splits)))

    output = config.output or distributed.broadcast_object(lambda: str(next_run_folder()))
    config = dataclasses.replace(config, output=output)
    command = resume_command(data, method, output)
    settings = dataclasses.asdict(data) | dataclasses.asdict(method) | {"model": name}
    settings["words"] = data.words if prepared else corpus.words  # a prepared corpus says it itself
    try:
        with contextlib.ExitStack() as until_the_end:
            with distributed.rank_zero_first():  # so that nobody else writes what all of them read
                if distributed.is_rank_zero():
                    until_the_end.enter_context(locked_run(Path(output)))
            train(model, dataset, config, objective, evaluate, heldout, settings)
    except Interrupted as stop:
        raise Interrupted(stop.signal, f"{stop}; go on with: {command}") from stop
    except OSError as error:
        if not holds_run(Path(output)):
            raise
        raise OSError(f"{error}; what was saved before is whole, go on with: {command}") from error
    distributed.destroy_process_group()
    if not distributed.is_rank_zero():
        return Path(output)

    _print_results(Path(output), name, data, method, rows, encoder, splits)
    trained = str(Path(output) / "encoder")
    print(f"The trained encoder is {trained}; sentence-transformers loads it: SentenceTransformer({trained!r})")
    return Path(output)


def _print_results(
    run: Path,
    name: str,
    data: DataConfig,
    method: MethodConfig,
    rows: list[tuple[str, str, dict[str, Scores]]],
    encoder: SentenceEncoder,
    splits: dict[str, Pairs],
) -> None:
    """Tables and verdicts of a run that has ended; evaluation.json. rows: the scores of the untrained model."""
    log = summary.measured(run) if (run / "metrics.jsonl").is_file() else []
    if rows:
        trained_by = "TSDAE" if method.objective == "tsdae" else method.objective
        starts = {"[CLS] vector" if pooling == "cls" else pooling: scores for _, pooling, scores in rows}
        rows = [*rows, (f"{name}, {method.pooling}, after {trained_by}", method.pooling, _score(encoder, splits))]
        write_json(run / "evaluation.json", [entry(row_name, pooling, scores) for row_name, pooling, scores in rows])
        print(table_of([(row_name, scores) for row_name, _, scores in rows]))
        if data.corpus is None:
            print(summary.for_orientation())
        if line := summary.over_the_steps(log):
            print(line)
        print(summary.gain(trained_by, rows[-1][2], starts))
    if compared := summary.before_and_after(log):
        print(compared)
    if log and method.objective != "mlm" and (line := summary.harm(log, ADVICE)):
        print(line)
    if len(log) > 1 and summary.draw_curve(log, run / "curve.png"):
        print(f"The learning curve is {run / 'curve.png'}")


def _stsb(data: DataConfig) -> dict[str, Pairs]:
    """STS-B where the run needs it; empty where it does not, or where one's own text can be trained on without it."""
    if data.corpus is None:
        return load_stsb()
    if data.evaluate != "stsb":
        return {}
    try:
        return load_stsb()
    except ValueError as error:
        print_note(f"{error}; going on without it, with the held-out loss as the measure")
        return {}


def sample_sentences(stsb: dict[str, Pairs], limit: int | None = None) -> list[str]:
    """The distinct sentences of STS-B's train split that occur in neither dev nor test; no label is read.

    limit: so many of them, drawn at random with a fixed key, since STS-B is in the order of its sources.
    """
    seen = {sentence for split in ("dev", "test") for sentence in stsb[split].first + stsb[split].second}
    distinct = dict.fromkeys(stsb["train"].first + stsb["train"].second)
    kept = [sentence for sentence in distinct if sentence not in seen]
    print_note(
        f"the sample corpus: {len(kept):,} of the {len(distinct):,} distinct sentences of STS-B train, those that "
        "occur in neither dev nor test"
    )
    if limit is not None and limit < len(kept):
        chosen = np.sort(keyed(SAMPLE, np.arange(len(kept))).argsort()[:limit])
        print_note(f"--limit: {limit:,} of them, drawn at random")
        return [kept[k] for k in chosen]
    return kept


def _dataset(
    corpus: Corpus, encoder: SentenceEncoder, data: DataConfig, method: MethodConfig, seed: int
) -> DenoisingDataset:
    max_length = min(data.max_length, encoder.bert.config.longest_sentence)
    return DenoisingDataset(corpus, encoder.tokenizer, method.noise, method.noise_ratio, seed, max_length)


def _print_plan(name: str, dataset: DenoisingDataset, heldout: DenoisingDataset | None, config: TrainConfig) -> None:
    rows, size = len(dataset), config.step_size
    steps = config.steps_for(rows)
    share = 100 * steps * size / rows
    advice = "" if share >= 100 or config.epochs is not None else "; --epochs 1 sees all"
    device = choose_device(config.device)
    print_note(describe(device, choose_precision(config.precision, device)))
    if distributed.world_size() > 1:
        print_note(f"{distributed.world_size()} processes, batches of {config.batch_size} in each")
    print_note(f"model {name}; {rows:,} sentences to train on, {len(heldout) if heldout else 0:,} held out")
    if config.epochs is not None:
        print_note(f"--epochs {config.epochs:g} makes {steps:,} steps, in place of --steps")
    print_note(f"{steps:,} steps x {size} = {steps * size:,} of {rows:,} sentences ({share:.0f} %){advice}")
    if truncated := dataset.truncated:
        print_note(f"{truncated:,} sentences are longer than {dataset.max_length} tokens and lose their end")
    for line in dataset.corpus.notes():
        print_note(line)


def _evaluation(
    data: DataConfig, stsb: dict[str, Pairs], encoder: SentenceEncoder
) -> tuple[dict[str, Pairs], Callable[[Any], dict[str, float]] | None, list[str]]:
    """What the final table shows, what is called during training, and the names of its measures."""
    evaluate = data.evaluate or ("stsb" if data.corpus is None else "heldout")
    if evaluate in ("heldout", "none") or (evaluate == "stsb" and not stsb):
        return {}, None, []
    if evaluate == "stsb":
        splits, watched, measure = {split: stsb[split] for split in ("dev", "test")}, stsb["dev"], "stsb_dev"
    elif names_function(evaluate):
        function = named_function(evaluate, "evaluate")
        return {}, function, distributed.broadcast_object(lambda: _names_of(function, evaluate, encoder))
    else:
        watched, measure = load_pairs(evaluate), "pairs"
        splits = {"pairs": watched}
    return splits, lambda encoder: {measure: evaluate_sts(encoder, watched, intervals=False).spearman}, [measure]


def _names_of(function: Callable[[Any], dict[str, float]], name: str, encoder: SentenceEncoder) -> list[str]:
    """The measures that the user's function takes: it is called once, before hours of training rest on it."""
    print_note(f"calling {name} on the untrained model")
    measures = function(encoder.eval())
    if not isinstance(measures, dict) or not all(isinstance(value, (int, float)) for value in measures.values()):
        raise ValueError(f"--evaluate {name} must return {{name: number}}, it returned {measures!r}")
    return list(measures)


def _heldout_measures(heldout: DenoisingDataset | None, terms: list[str]) -> list[str]:
    """The names of what `validation.validate` takes on held-out sentences, of an objective with these terms."""
    if heldout is None:
        return []
    names = ["heldout_loss", *(f"heldout_{term}_loss" for term in terms if len(terms) > 1)]
    if len(heldout) > 1:
        names += [*(RECONSTRUCTION if "reconstruction" in terms else ()), *GEOMETRY]
    return names


def _check_measures(config: TrainConfig, best: str, measures: list[str]) -> None:
    """Prints what is measured; ValueError if --best or --early-stop names something else."""
    check_names({"--early-stop": config.early_stop}, measures)
    if not (config.resume and holds_run(Path(str(config.output)))):
        check_names({"--best": config.best}, measures)
    if best not in measures:
        print_note(f"no best/ is kept: its measure {best} needs held-out sentences")
    if measures and config.eval_every:
        kept = f"; best/ is chosen by {best}" if best in measures else ""
        print_note(f"measured before the first step and every {config.eval_every:,} steps: {', '.join(measures)}{kept}")


def _score(encoder: SentenceEncoder, splits: dict[str, Pairs]) -> dict[str, Scores]:
    return {split: score(encoder, pairs) for split, pairs in splits.items()}
