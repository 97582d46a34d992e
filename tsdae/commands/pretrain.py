"""From nothing but text to a sentence encoder: a tokenizer, a BERT of its own, masked-language modelling, then TSDAE.

Each stage leaves a folder below the output, and a finished stage is not done again:

    OUTPUT/start    tokenizer and random BERT       OUTPUT/raw     the raw language model, with its head
    OUTPUT/corpus   the text, tokenised once        OUTPUT/tsdae   the run whose encoder/ is the result
    OUTPUT/mlm      the run that makes raw

Masked-language modelling is BERT's own objective (Devlin et al. 2019, section 3.1), in the same loop as TSDAE, with the
learning rate warmed up and falling linearly.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tsdae.autoencoder import TSDAE
from tsdae.bert import Bert, BertConfig, Pretrained
from tsdae.commands.preflight import check
from tsdae.commands.prepare import prepare
from tsdae.commands.train import run_training
from tsdae.config import DataConfig, MethodConfig, PrepareConfig, TextConfig, TrainConfig, flag
from tsdae.encoder import SentenceEncoder
from tsdae.hub.conversion import write_pretrained
from tsdae.run.folder import holds_run, stored_settings
from tsdae.text.corpus import check_corpus_output, is_corpus
from tsdae.text.preparation import sentences_of
from tsdae.text.reading import is_stream
from tsdae.utils import distributed
from tsdae.utils.files import first_line, read_json, remove, replace_folder, write_json, writing
from tsdae.utils.progress import print_note
from tsdae.utils.signals import Interrupted

SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
FEWEST_PIECES = 100  # beyond the special tokens: with fewer there are hardly letters enough
LONGEST_WORD = 500  # characters
BEGUN = "pretrain.json"


@dataclass(frozen=True)
class Preset:
    """A shape, and stages that fit a machine: steps, batch size and peak learning rate of each."""

    layers: int
    width: int
    vocabulary_size: int
    mlm: tuple[int, int, float]
    tsdae: tuple[int, int, float]


PRESETS = {
    "cpu": Preset(4, 256, 8000, (24000, 64, 1e-3), (5000, 32, 2e-4)),
    "gpu": Preset(12, 512, 30000, (60000, 256, 5e-4), (20000, 64, 1e-4)),
}


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TextConfig):
    """What to build. A field that is not given is the preset's."""

    output: str = field(metadata={"help": "folder of all stages; the encoder will be OUTPUT/tsdae/encoder"})
    preset: Literal["cpu", "gpu"] = flag("cpu", "cpu: 4 layers of 256 and an hour on 2 cores; gpu: 12 layers of 512")
    tokenizer: Literal["wordpiece", "unigram"] = flag("wordpiece", "unigram: for scripts that write no spaces")
    vocabulary_size: int | None = flag(None, "pieces of the tokenizer, special ones included")
    cased: bool = flag(False, "keep capitals; without it the text is lowered")
    layers: int | None = flag(None, "of the BERT")
    width: int | None = flag(None, "of the BERT, a multiple of 64: a head is 64 wide")
    positions: int = flag(128, "longest sentence in tokens")
    mlm_steps: int | None = flag(None, "of masked-language modelling")
    mlm_learning_rate: float | None = flag(None, "of masked-language modelling: the peak of its linear schedule")
    mlm_ratio: float = flag(MethodConfig.mlm_ratio, "share of tokens that masked-language modelling predicts")
    tsdae_steps: int | None = flag(None, "of TSDAE; 0: stop at the raw language model")
    pooling: Literal["cls", "mean", "max"] = flag("cls", "of the sentence encoder")
    evaluate: str | None = flag(None, "as for train.py: stsb, heldout, FILE of labelled pairs, none; default: heldout")
    seed: int = flag(0, "of weights, noise and order")
    precision: Literal["auto", "fp64", "fp32", "bf16", "fp16"] = flag("auto", "of the forward and backward pass")
    device: str = flag("auto", "auto, cuda, cpu or mps")
    threads: int | None = flag(None, "CPU threads; default: PyTorch's choice")

    def __post_init__(self) -> None:
        shape = self.shape
        if shape.width < 64 or shape.width % 64:
            raise ValueError(f"--width must be a multiple of 64, got {shape.width}")
        if shape.layers < 1 or shape.mlm[0] < 1 or shape.tsdae[0] < 0:
            raise ValueError("--layers and --mlm-steps must be at least 1, --tsdae-steps at least 0")
        if shape.vocabulary_size < FEWEST_PIECES:
            raise ValueError(f"--vocabulary-size must be at least {FEWEST_PIECES}, got {shape.vocabulary_size}")
        if not 0 < shape.mlm[2] < math.inf:
            raise ValueError(f"--mlm-learning-rate must be positive, got {self.mlm_learning_rate}")
        if not 0 < self.mlm_ratio < 1:
            raise ValueError(f"--mlm-ratio must lie between 0 and 1, got {self.mlm_ratio}")
        if self.positions < 8:
            raise ValueError(f"--positions must be at least 8, got {self.positions}")

    @property
    def shape(self) -> Preset:
        """The preset with what was given in its place."""
        preset = PRESETS[self.preset]
        given: dict[str, Any] = {name: getattr(self, name) for name in ("layers", "width", "vocabulary_size")}
        for name, steps, learning_rate in (
            ("mlm", self.mlm_steps, self.mlm_learning_rate),
            ("tsdae", self.tsdae_steps, None),
        ):
            own_steps, batch_size, own_rate = getattr(preset, name)
            given[name] = (
                own_steps if steps is None else steps,
                batch_size,
                own_rate if learning_rate is None else learning_rate,
            )
        return dataclasses.replace(preset, **{name: value for name, value in given.items() if value is not None})


def pretrain(source: str, config: PretrainConfig) -> Path:
    """Does what is missing of all stages; returns the folder of the encoder (of the raw model without TSDAE).

    ValueError, before a minute is spent: text, shape or output that cannot be used.
    """
    distributed.check_single_process("pretrain.py")
    output, shape = Path(config.output), config.shape
    stages = {name: output / name for name in ("start", "corpus", "mlm", "raw", "tsdae")}
    _check_source(source)
    train = TrainConfig(precision=config.precision, device=config.device, threads=config.threads)
    data = DataConfig(corpus=source, evaluate=config.evaluate, max_length=config.positions, **config.of_text)
    check(data, MethodConfig(model=str(stages["start"])), train)
    settings = {"source": str(Path(source))} | dataclasses.asdict(config)
    _check_begun(output, settings)
    if not is_corpus(stages["corpus"]):
        check_corpus_output(stages["corpus"], overwrite=False)
    if not stages["start"].is_dir():
        print_note(f"training a {config.tokenizer} tokenizer of {shape.vocabulary_size:,} pieces")
        sentences = sentences_of(source, config, [output])
        tokenizer = train_tokenizer(sentences, config.tokenizer, shape.vocabulary_size, config.cased)
        encoder = new_encoder(tokenizer, shape, config)
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / BEGUN, _decisive(settings))
        _write_language_model(encoder.pretrained, tokenizer, stages["start"])
    if not is_corpus(stages["corpus"]):
        prepared = PrepareConfig(model=str(stages["start"]), output=str(stages["corpus"]), **config.of_text)
        prepare(source, prepared, [output])
    if not stages["raw"].is_dir():
        _stage(config, stages["start"], stages["mlm"], "mlm")
        _write_raw(stages["mlm"], stages["raw"])
    print_note(f"the raw language model is {stages['raw']}; AutoModelForMaskedLM loads it")
    if shape.tsdae[0] == 0:
        return stages["raw"]
    _stage(config, stages["raw"], stages["tsdae"], "tsdae")
    return stages["tsdae"] / "encoder"


def _check_source(source: str) -> None:
    """ValueError for what cannot be read twice as text: once for the tokenizer, once for the corpus."""
    if is_corpus(Path(source)):
        raise ValueError(f"{source} is tokenised already, and a tokenizer is to be trained; give the text itself")
    if is_stream(source):
        raise ValueError("the text is read twice, for the tokenizer and for the corpus; write it to a file first")


def _decisive(settings: dict[str, Any]) -> dict[str, Any]:
    """What finished stages depend on."""
    return {name: value for name, value in settings.items() if name not in ("output", "device", "threads")}


def _check_begun(output: Path, settings: dict[str, Any]) -> None:
    """Compares OUTPUT/pretrain.json, if it is there: finished stages are kept, so they must be of the same settings."""
    if (output / BEGUN).is_file() and (output / "start").is_dir():
        stored = read_json(output / BEGUN)
        for name, value in _decisive(settings).items():
            if stored.get(name, getattr(PretrainConfig, name, None)) != value:  # a setting newer than the folder
                flag_of = name if name == "source" else f"--{name.replace('_', '-')}"
                raise ValueError(
                    f"{output} was begun with {flag_of} {stored.get(name)}, now it is {value}; choose another --output"
                )
    elif output.exists() and (not output.is_dir() or {path.name for path in output.iterdir()} - {BEGUN, "start.part"}):
        raise ValueError(f"--output {output} is there and holds no pretraining; choose another folder")


def _stage(config: PretrainConfig, model: Path, folder: Path, objective: Literal["mlm", "tsdae"]) -> None:
    """One run of the same loop, from one stage's folder to the next's; goes on where it was stopped."""
    if holds_run(folder) and "finished" in stored_settings(folder):
        return
    steps, batch_size, learning_rate = getattr(config.shape, objective)
    print_note(f"{objective}: {steps:,} steps of batch {batch_size}, from {model}")
    is_mlm = objective == "mlm"
    train = TrainConfig(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        schedule="linear" if is_mlm else "constant",
        warmup_steps=max(1, steps // 20) if is_mlm else 0,
        weight_decay=0.01 if is_mlm else 0.0,  # BERT's own (Devlin et al. 2019, appendix A.2); the paper's TSDAE: none
        seed=config.seed,
        precision=config.precision,
        device=config.device,
        threads=config.threads,
        output=str(folder),
        eval_every=max(1, steps // 8),
        resume=holds_run(folder),
    )
    data = DataConfig(corpus=str(folder.parent / "corpus"), evaluate=config.evaluate, max_length=config.positions)
    try:
        ratio = config.mlm_ratio if is_mlm else MethodConfig.mlm_ratio
        run_training(
            data, MethodConfig(str(model), pooling=config.pooling, objective=objective, mlm_ratio=ratio), train
        )
    except Interrupted as stop:  # its own advice is for this stage alone
        raise Interrupted(stop.signal, f"stopped in {folder}; the same command goes on from there") from stop


def train_tokenizer(sentences: Iterable[str], kind: str, vocabulary_size: int, cased: bool = False) -> Any:
    """A fast tokenizer with BERT's special tokens, trained on these sentences by the library `tokenizers`.

    kind: "wordpiece" (BERT's: splits at spaces and punctuation) or "unigram" (Kudo 2018; pieces may span what other
    languages would call words, so it suits scripts without spaces).
    cased: keep capitals; without it the text is lowered. Accents stay either way: BERT's uncased tokenizers drop them,
        and with them the vowel signs of Hindi or Thai.
    Where pieces are equally good the library chooses by chance: two calls differ a little.
    ValueError if the text is too small for ``vocabulary_size`` pieces, or has more letters than that.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = list(SPECIAL.values())
    trainer: Any
    if kind == "wordpiece":
        # A longer word is unknown; where no spaces are written a sentence is one word, and BERT's 100 are too few.
        backend = Tokenizer(models.WordPiece(unk_token=SPECIAL["unk"], max_input_chars_per_word=LONGEST_WORD))
        backend.normalizer = normalizers.BertNormalizer(lowercase=not cased, strip_accents=False)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=vocabulary_size, special_tokens=special, show_progress=False)
    else:
        backend = Tokenizer(models.Unigram())
        lower = [] if cased else [normalizers.Lowercase()]
        backend.normalizer = normalizers.Sequence([normalizers.NFKC(), *lower])
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=vocabulary_size, special_tokens=special, unk_token=SPECIAL["unk"], show_progress=False
        )
    try:
        backend.train_from_iterator(sentences, trainer)
    except (ValueError, OSError):  # of the text
        raise
    except Exception as error:  # the library has one kind for all; for unigram it is a vocabulary below the letters
        raise ValueError(f"no {kind} tokenizer of {vocabulary_size:,} pieces: {first_line(error)}") from error
    if backend.get_vocab_size() > vocabulary_size:
        raise ValueError(
            f"the letters of the text alone make {backend.get_vocab_size():,} pieces, --vocabulary-size asks for "
            f"{vocabulary_size:,}; give a larger one"
        )
    if backend.get_vocab_size() < vocabulary_size:
        raise ValueError(
            f"the text supports {backend.get_vocab_size():,} pieces, --vocabulary-size asks for {vocabulary_size:,}; "
            "give a smaller one, or more text"
        )
    backend.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL['cls']} $A {SPECIAL['sep']}",
        special_tokens=[(token, backend.token_to_id(token)) for token in (SPECIAL["cls"], SPECIAL["sep"])],
    )
    names = {f"{name}_token": token for name, token in SPECIAL.items()}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def new_encoder(tokenizer: Any, shape: Preset, config: PretrainConfig) -> SentenceEncoder:
    """A random BERT of this shape around the tokenizer; the start of BERT's own code."""
    bert = Bert(
        BertConfig(
            vocabulary_size=len(tokenizer),
            width=shape.width,
            layers=shape.layers,
            heads=shape.width // 64,
            feed_forward=4 * shape.width,
            positions=config.positions,
        ),
        config.seed,
    )
    return SentenceEncoder(bert, tokenizer, config.pooling)


def _write_raw(run: Path, folder: Path) -> None:
    """The run's encoder as a language model: a folder of Hugging Face with the head that was trained."""
    model = TSDAE.from_pretrained(run)
    pretrained = copy.copy(model.encoder.pretrained)
    pretrained.head = model.head.state_dict()
    _write_language_model(pretrained, model.encoder.tokenizer, folder)


def _write_language_model(pretrained: Pretrained, tokenizer: Any, folder: Path) -> None:
    """A folder of Hugging Face, with a head if there is one; it says nothing of pooling, so it is no sentence model."""
    with _appearing(folder) as staged:
        write_pretrained(staged, pretrained, with_head=pretrained.head is not None)
        tokenizer.save_pretrained(str(staged))


@contextlib.contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A folder to write in, which gets its name when it is whole."""
    staged = folder.with_name(f"{folder.name}.part")
    remove(staged)
    staged.mkdir(parents=True)
    with writing(staged):
        yield staged
    replace_folder(staged, folder)
