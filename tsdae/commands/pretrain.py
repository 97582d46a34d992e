"""From nothing but text to a sentence encoder: a tokenizer, a BERT of its own, masked-language modelling, then TSDAE.

Each stage leaves a folder below the output, and a finished stage is not done again:

    OUTPUT/start    tokenizer and random BERT       OUTPUT/raw     the raw language model, with its head
    OUTPUT/corpus   the text, tokenised once        OUTPUT/tsdae   the run whose encoder/ is the result
    OUTPUT/mlm      the run that makes raw

Masked-language modelling is BERT's own objective (Devlin et al. 2019, section 3.1), in the same loop as TSDAE, with the
learning rate warmed up and falling linearly.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal

from tsdae.autoencoder import TSDAE
from tsdae.bert import Bert, BertConfig, Pretrained
from tsdae.commands.preflight import check
from tsdae.commands.prepare import prepare, remove_leftovers
from tsdae.commands.settings import PretrainConfig
from tsdae.commands.tokenizer import train_tokenizer
from tsdae.commands.train import run_training
from tsdae.config import DataConfig, MethodConfig, PrepareConfig, TrainConfig
from tsdae.hub.conversion import write_pretrained
from tsdae.run.folder import holds_run, stored_settings
from tsdae.text.corpus import check_corpus_output, is_corpus
from tsdae.text.preparation import sentences_of
from tsdae.text.reading import is_stream
from tsdae.utils import distributed
from tsdae.utils.files import atomic, read_json, write_json, writing
from tsdae.utils.plural import counted
from tsdae.utils.progress import print_note
from tsdae.utils.signals import Interrupted

SETTINGS = "pretrain.json"  # of what is in the folder, which a later call must share
FREE = ("output", "device", "threads", "report_to")  # settings on which no finished stage depends


def pretrain(source: str, config: PretrainConfig) -> Path:
    """Do what is missing of all stages; return the folder of the encoder (of the raw model without TSDAE).

    ValueError, before a minute is spent: text, shape or output that cannot be used.
    """
    distributed.check_single_process("pretrain")
    output = Path(config.output)
    start, corpus, mlm, raw, tsdae = (output / name for name in ("start", "corpus", "mlm", "raw", "tsdae"))
    if is_corpus(Path(source)):
        raise ValueError(f"{source} is a prepared corpus, which is tokenised already; give the text itself")
    if is_stream(source):
        raise ValueError(
            "the text is read twice (tokenizer, corpus), which a stream does not allow; write it to a file"
        )
    train = TrainConfig(precision=config.precision, device=config.device, threads=config.threads)
    train = dataclasses.replace(train, report_to=config.report_to)
    data = DataConfig(corpus=source, evaluate=config.evaluate, max_length=config.positions, **config.of_text)
    check(data, MethodConfig(model=str(start)), train)
    settings = {"source": str(Path(source))} | dataclasses.asdict(config)
    settings = {name: value for name, value in settings.items() if name not in FREE}
    _check_same(output, settings)
    if not is_corpus(corpus):
        check_corpus_output(corpus, overwrite=False)

    if not start.is_dir():
        print_note(f"training a {config.tokenizer} tokenizer of {config.shape.vocabulary_size:,} tokens")
        read = functools.partial(sentences_of, source, config, [output])
        tokenizer = train_tokenizer(read, config.tokenizer, config.shape.vocabulary_size, config.cased)
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / SETTINGS, settings)
        _write_language_model(_new_bert(tokenizer, config), tokenizer, start)
    remove_leftovers(corpus)
    if not is_corpus(corpus):
        prepared = PrepareConfig(model=str(start), output=str(corpus), **config.of_text)
        prepare(source, prepared, [output])
    if not raw.is_dir():
        _run_stage(config, start, mlm, "mlm")
        _write_raw(mlm, raw)
    print_note(f"the raw language model is {raw}; AutoModelForMaskedLM loads it")
    if config.shape.tsdae.steps == 0:
        return raw
    _run_stage(config, raw, tsdae, "tsdae")
    return tsdae / "encoder"


def _check_same(output: Path, settings: dict[str, Any]) -> None:
    """Raise ValueError if the output holds something else, or stages that were made with other settings."""
    if (output / SETTINGS).is_file() and (output / "start").is_dir():
        stored = read_json(output / SETTINGS)
        for name, value in settings.items():
            if stored.get(name, getattr(PretrainConfig, name, None)) != value:  # a setting newer than the folder
                shown = name if name == "source" else f"--{name.replace('_', '-')}"
                raise ValueError(
                    f"{output} was started with {shown} {stored.get(name)}, now it is {value}; choose another --output"
                )
    elif output.exists() and (
        not output.is_dir() or {path.name for path in output.iterdir()} - {SETTINGS, f"{SETTINGS}.part", "start.part"}
    ):
        raise ValueError(f"--output {output} exists and is not an output of `tsdae pretrain`; choose another folder")


def _new_bert(tokenizer: Any, config: PretrainConfig) -> Pretrained:
    """Make a random BERT for the tokenizer; the weights start as in BERT's own code."""
    shape = BertConfig(
        vocabulary_size=len(tokenizer),
        width=config.shape.width,
        layers=config.shape.layers,
        heads=config.shape.width // 64,
        feed_forward=4 * config.shape.width,
        positions=config.positions,
    )
    return Pretrained(Bert(shape, config.seed))


def _run_stage(config: PretrainConfig, model: Path, folder: Path, objective: Literal["mlm", "tsdae"]) -> None:
    """Train from one stage's folder into the next one's; resumes a run that was stopped."""
    if holds_run(folder) and "finished" in stored_settings(folder):
        return
    stage = config.shape.mlm if objective == "mlm" else config.shape.tsdae
    print_note(f"{objective}: {counted(stage.steps, 'step')} of batch {stage.batch_size}, from {model}")
    data = DataConfig(corpus=str(folder.parent / "corpus"), evaluate=config.evaluate, max_length=config.positions)
    method = MethodConfig(str(model), pooling=config.pooling, objective=objective)
    train = TrainConfig(
        **dataclasses.asdict(stage),
        seed=config.seed,
        precision=config.precision,
        device=config.device,
        threads=config.threads,
        output=str(folder),
        report_to=config.report_to,
        eval_every=max(1, stage.steps // 8),
        resume=holds_run(folder),
    )
    if objective == "mlm":  # warm-up and weight decay are BERT's own (Devlin et al. 2019, appendix A.2)
        method = dataclasses.replace(method, mlm_ratio=config.mlm_ratio)
        warmup = max(1, stage.steps // 20)
        train = dataclasses.replace(train, schedule="linear", warmup_steps=warmup, weight_decay=0.01)
    try:
        run_training(data, method, train)
    except Interrupted as stop:  # its own advice is for this stage alone
        raise Interrupted(stop.signal, f"stopped in {folder}; the same command resumes it") from stop


def _write_raw(run: Path, folder: Path) -> None:
    """Write the run's encoder as a language model, with the head that was trained."""
    model = TSDAE.from_pretrained(run)
    pretrained = copy.copy(model.encoder.pretrained)
    pretrained.head = model.head.state_dict()
    _write_language_model(pretrained, model.encoder.tokenizer, folder)


def _write_language_model(pretrained: Pretrained, tokenizer: Any, folder: Path) -> None:
    """Write a model folder of Hugging Face's format, with the head if there is one, that names no pooling."""
    with atomic(folder) as staged, writing(staged):
        staged.mkdir(parents=True)
        write_pretrained(staged, pretrained, pretrained.head)
        tokenizer.save_pretrained(str(staged))
