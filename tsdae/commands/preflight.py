"""Check the settings of a run before anything is downloaded or written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from tsdae.config import DataConfig, MethodConfig, TextConfig, TrainConfig
from tsdae.dataset import check_lengths_and_words, find_noise
from tsdae.evaluation.pairs import load_pairs
from tsdae.hub.model_folder import model_folder
from tsdae.objectives import OBJECTIVES, HoldOn, MaskedLanguageModel, TSDAEAndMLM
from tsdae.objectives.interface import check_batch_size, check_counts
from tsdae.run.folder import check_output
from tsdae.run.trackers import needed
from tsdae.text.corpus import is_corpus
from tsdae.text.preparation import check_heldout, check_text, open_prepared
from tsdae.text.reading import check_file, is_stream
from tsdae.text.saved import is_saved
from tsdae.utils import distributed
from tsdae.utils.checks import suggestion
from tsdae.utils.device import choose_device, choose_precision
from tsdae.utils.imports import named_function, names_function

OF_OWN_TEXT = ("column", "sentences", "min_characters", "max_characters", "min_letters")


def check(data: DataConfig, method: MethodConfig, config: TrainConfig) -> None:
    """Raise ValueError for every setting that can be known to fail before a download."""
    if is_prepared(data):
        _check_prepared(data, method)
    elif data.corpus is not None and Path(data.corpus).is_dir() and not is_saved(Path(data.corpus)):
        raise ValueError(
            f"{data.corpus} is a folder; give a file, or a folder written by `tsdae prepare` or by save_to_disk of "
            f"`datasets`, or a quoted pattern such as '{data.corpus}/**/*.txt'"
        )
    elif data.corpus is not None:
        check_text(data.corpus, data)
    elif given := [name for name in OF_OWN_TEXT if getattr(data, name) is not None]:
        raise ValueError(f"--{given[0].replace('_', '-')} needs --corpus: it is for a text of your own")
    if data.corpus is not None and is_stream(data.corpus) and distributed.world_size() > 1:
        raise ValueError(
            f"--corpus {data.corpus} is a stream, which several processes cannot share; save it to a file first"
        )
    if data.corpus is not None and method.model is None:
        raise ValueError(
            "--corpus needs --model: a raw language model such as bert-base-uncased, distilbert-base-uncased or "
            "xlm-roberta-base, a model folder, or mini (built in, small, English)"
        )
    if method.add_tokens is not None:
        check_file(Path(method.add_tokens))
    check_lengths_and_words(data.max_length, data.words)
    find_noise(method.noise)
    objective = objective_of(method)
    check_counts(objective, config.accumulate * distributed.world_size())
    if method.hold_on:
        check_batch_size(HoldOn, config.batch_size, "--hold-on")
    check_batch_size(objective, config.batch_size, f"--objective {method.objective}")
    choose_precision(config.precision, choose_device(config.device))
    check_heldout(data.heldout)
    evaluate = data.evaluate
    if evaluate == "heldout" and data.heldout == "0":
        raise ValueError("--evaluate heldout needs held-out sentences, and --heldout 0 keeps none")
    if evaluate is not None and evaluate not in ("stsb", "heldout", "none"):
        if names_function(evaluate):
            named_function(evaluate, "evaluate")
        else:
            load_pairs(evaluate)
    if config.best is not None and config.eval_every == 0 and not config.resume:
        raise ValueError("--best needs evaluations: --eval-every is 0")
    if config.output is not None:
        check_output(Path(config.output), config.overwrite, config.resume)
    for name in config.trackers:
        needed(name)
    if method.model is not None and Path(method.model).exists():
        model_folder(method.model)


def is_prepared(data: DataConfig) -> bool:
    """Return True if the corpus is a folder written by `tsdae prepare`."""
    return data.corpus is not None and is_corpus(Path(data.corpus))


def _check_prepared(data: DataConfig, method: MethodConfig) -> None:
    """Raise ValueError if the prepared corpus is damaged, or if a setting is given that preparing has fixed."""
    corpus, heldout = open_prepared(str(data.corpus))
    for setting in dataclasses.fields(TextConfig):
        given = getattr(data, setting.name)
        its_own = setting.name == "words" and given == corpus.words  # these may be named
        if given != setting.default and not its_own:
            raise ValueError(
                f"--{setting.name.replace('_', '-')} applies when a text is prepared, and {data.corpus} is "
                "already prepared; give it to `tsdae prepare`"
            )
    if method.model is None:
        raise ValueError(f"--corpus needs --model: {data.corpus} was prepared for {corpus.made_from.get('model')}")
    if data.evaluate == "heldout" and heldout is None:
        raise ValueError(
            f"--evaluate heldout needs held-out sentences, and {data.corpus} was prepared without any; "
            "use --evaluate stsb or none"
        )


def objective_of(method: MethodConfig) -> Any:
    """Return the objective that is named, or the class that makes it from the model; ValueError if there is none."""
    if method.objective in ("mlm", "tsdae_mlm"):
        return (MaskedLanguageModel if method.objective == "mlm" else TSDAEAndMLM)(method.mlm_ratio)
    if method.objective in OBJECTIVES:
        return OBJECTIVES[method.objective]
    if ":" not in method.objective:
        choose = suggestion(method.objective, OBJECTIVES, "or file.py:function")
        raise ValueError(f"unknown objective {method.objective!r}; {choose}")
    return named_function(method.objective, "objective")
