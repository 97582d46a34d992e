"""What must not matter does not: the order of sentences, how a step is split, padding, attention kernels, threads.

Everywhere the same three things are compared: the sentence vectors, the loss, and the gradient of every parameter.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from tests import tiny
from tests.tolerances import FLOAT32, FLOAT64
from tsdae import TSDAE, Batch, DenoisingDataset, SentenceEncoder
from tsdae.bert import Bert, Pretrained
from tsdae.objectives import tsdae
from tsdae.objectives.interface import step_counts
from tsdae.packing import Packed
from tsdae.run.folder import Run

VARIANTS = pytest.mark.parametrize(
    ("pooling", "tie", "decoder_layers"),
    [("cls", True, None), ("mean", True, 1), ("max", False, None), ("cls", False, 2)],
)


class Computed(NamedTuple):
    sentence_BD: Tensor
    loss: Tensor
    gradients: dict[str, Tensor]


def compute(model: TSDAE, batch: Batch) -> Computed:
    return compute_step(model, [batch])


def compute_step(model: TSDAE, batches: list[Batch]) -> Computed:
    """One optimiser step's vectors, loss and gradients, summed over its batches as `train` does it."""
    assert not model.training, "dropout is on"
    model.zero_grad()
    counts = step_counts(tsdae, batches)
    assert counts is not None
    vectors, losses = [], []
    for batch in batches:
        loss = model(batch).share_of(counts)
        loss.backward()
        vectors.append(model.encode(batch.noisy).detach())
        losses.append(loss.detach())
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(model.parameters())), "a parameter has no gradient"
    assert min(gradient.abs().max() for gradient in gradients.values()) > 1e-6, "a gradient is zero"
    return Computed(torch.cat(vectors), torch.stack(losses).sum(), gradients)


def assert_same(computed: Computed, expected: Computed) -> None:
    torch.testing.assert_close(computed._asdict(), expected._asdict(), **FLOAT64)


def rows_of(rows: list[int], sentences: list[str] | None = None) -> Batch:
    data = tiny.dataset(sentences)
    return data.collate([data[row] for row in rows])


@VARIANTS
def test_the_order_of_sentences(pooling: str, tie: bool, decoder_layers: int | None) -> None:
    model, order = tiny.model(pooling, tie, decoder_layers), [3, 6, 0, 5, 1, 7, 4, 2]
    expected = compute(model, rows_of(list(range(8))))
    computed = compute(model, rows_of(order))
    assert_same(computed, expected._replace(sentence_BD=expected.sentence_BD[order]))


@VARIANTS
@pytest.mark.parametrize("split", [[4, 4], [1, 5, 2], [1] * 8], ids=str)
def test_how_a_step_is_split(split: list[int], pooling: str, tie: bool, decoder_layers: int | None) -> None:
    """Down to one sentence a batch, where nothing is padded at all."""
    model, rows = tiny.model(pooling, tie, decoder_layers), iter(range(8))
    batches = [rows_of([next(rows) for _ in range(size)]) for size in split]
    assert_same(compute_step(model, batches), compute(model, tiny.batch()))


@VARIANTS
def test_more_padding(pooling: str, tie: bool, decoder_layers: int | None) -> None:
    """As if the longest sentence were five tokens longer than it is: attention and pooling pad that much more."""

    def loosely(packed: Packed[Tensor]) -> Packed[Tensor]:
        return dataclasses.replace(packed, longest=packed.longest + 5)

    model, batch = tiny.model(pooling, tie, decoder_layers), tiny.batch()
    assert_same(compute(model, Batch(loosely(batch.noisy), loosely(batch.target))), compute(model, batch))


class Operators(TorchDispatchMode):
    """Notes the names of PyTorch's operators that run inside it, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.__name__)
        return func(*args, **(kwargs or {}))


def has_attention_kernel(operators: Operators) -> bool:
    """Fused kernels go by one name; the plain one is made of ordinary products."""
    return any("scaled_dot_product" in name for name in operators.names)


@VARIANTS
def test_the_attention_kernel(pooling: str, tie: bool, decoder_layers: int | None) -> None:
    model, batch = tiny.model(pooling, tie, decoder_layers), tiny.batch()
    with Operators() as default:
        expected = compute(model, batch)
    with sdpa_kernel(SDPBackend.MATH), Operators() as plain:
        computed = compute(model, batch)
    assert has_attention_kernel(default), "no fused kernel ran"
    assert not has_attention_kernel(plain), "the plain kernel did not run"
    assert_same(computed, expected)


@pytest.fixture
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads_as_before")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_number_of_threads(dtype: torch.dtype) -> None:
    """At a size at which PyTorch does spread work over threads: more than 32,768 elements."""
    model, batch = tiny.model(dtype=dtype), rows_of(list(range(160)), tiny.SENTENCES * 20)
    assert batch.noisy.longest * len(batch.noisy) * model.encoder.bert.config.width > 32_768
    torch.set_num_threads(1)
    expected = compute(model, batch)
    torch.set_num_threads(2)
    computed = compute(model, batch)
    tolerance = FLOAT64 if dtype == torch.float64 else FLOAT32
    torch.testing.assert_close(computed._asdict(), expected._asdict(), **tolerance)


@VARIANTS
def test_nothing_adds_in_the_order_of_threads(pooling: str, tie: bool, decoder_layers: int | None) -> None:
    """The backward of ``x[rows]`` lets threads add to one row in any order, so no run would be like another. It shows
    in float32, on large tensors, now and then; so what is looked for is the operator."""
    weight, rows = torch.ones(3, 2, requires_grad=True), torch.tensor([0, 0, 2])
    with Operators() as indexing:
        weight[rows].sum().backward()
    assert any("index_put" in name for name in indexing.names), "the operator goes by another name now"
    with Operators() as operators:
        compute(tiny.model(pooling, tie, decoder_layers), tiny.batch())
    assert not any("index_put" in name for name in operators.names)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_tokenizer_file_that_stores_padding(side: str, tmp_path: Path) -> None:
    plain = tiny.encoder(dtype=torch.float32)
    plain.save_pretrained(tmp_path)
    padding = tiny.tokenizer()
    padding.padding_side = side
    padding.backend_tokenizer.enable_padding(direction=side, length=30)
    padding.backend_tokenizer.enable_truncation(4)
    padding.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert stored["padding"]["direction"] == side.capitalize(), "the file stores no padding"
    assert stored["truncation"]["max_length"] == 4, "the file stores no truncation"

    loaded = SentenceEncoder.from_pretrained(tmp_path)
    assert (loaded.encode(tiny.SENTENCES) == plain.encode(tiny.SENTENCES)).all()
    assert_same_batch(Batch.from_texts(tiny.SENTENCES[::-1], tiny.SENTENCES, loaded.tokenizer))
    loaded.save_pretrained(tmp_path / "saved")
    stored = json.loads((tmp_path / "saved" / "tokenizer.json").read_text(encoding="utf-8"))
    assert (stored["padding"], stored["truncation"]) == (None, None)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_tokenizer_that_was_called_with_padding_before(side: str) -> None:
    """A fast tokenizer remembers the padding and truncation of its last call, also where it is used beside us."""
    tokenizer = tiny.tokenizer()
    tokenizer.padding_side = side
    padded = tokenizer(tiny.SENTENCES, padding=True, truncation=True, max_length=8).input_ids
    assert (padded[1][0] == tokenizer.pad_token_id) == (side == "left"), "the tokenizer does not pad on that side"
    assert_same_batch(Batch.from_texts(tiny.SENTENCES[::-1], tiny.SENTENCES, tokenizer))

    tokenizer(tiny.SENTENCES, padding=True, truncation=True, max_length=8)
    data, expected = DenoisingDataset(tiny.SENTENCES, tokenizer), tiny.dataset()
    assert [data[row] for row in range(8)] == [expected[row] for row in range(8)]


def assert_same_batch(batch: Batch) -> None:
    """``batch`` holds the tiny sentences, backwards as noisy ones, without padding or truncation."""
    whole = [tiny.tokenizer()(sentence).input_ids for sentence in tiny.SENTENCES]
    assert list(batch.noisy.sentences()) == whole[::-1]
    assert list(batch.target.sentences()) == whole


def decoder_follows_encoder(model: TSDAE) -> bool:
    """Whether the decoder, given a fixed sentence vector, computes something else while the encoder is changed."""
    target, sentence_BD = tiny.batch().target, torch.ones(8, 24, dtype=next(model.parameters()).dtype)
    bert, follows = model.encoder.bert, []
    with torch.no_grad():
        before = model.logits(model.decode(target, sentence_BD))
        for part in (bert.embeddings.words, bert.layers[0].attention.project, bert.layers[0].feed_forward.norm):
            kept = part.weight.clone()
            part.weight.mul_(2.0)
            follows.append(not torch.equal(model.logits(model.decode(target, sentence_BD)), before))
            part.weight.copy_(kept)
    assert len(set(follows)) == 1, "tied in part"
    return follows[0]


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_tying_outlives_moving_and_copying(tie: bool, tmp_path: Path) -> None:
    model = tiny.model(tie=tie)
    assert decoder_follows_encoder(model) == tie
    assert decoder_follows_encoder(model.to("cpu", torch.float32)) == tie
    before = {name: parameter.clone() for name, parameter in model.state_dict().items()}
    twin = copy.deepcopy(model)
    assert decoder_follows_encoder(twin) == tie
    tiny.randomise(twin, seed=1)
    for name, parameter in model.state_dict().items():
        assert torch.equal(parameter, before[name]), f"{name} is shared with a copy"
    assert decoder_follows_encoder(saved_and_loaded(model, tmp_path)) == tie


def saved_and_loaded(model: TSDAE, folder: Path) -> TSDAE:
    Run(folder / "run", {}).save_last(model)
    return TSDAE.from_pretrained(folder / "run").eval()


@VARIANTS
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_saving_and_loading(family: str, pooling: str, tie: bool, decoder_layers: int | None, tmp_path: Path) -> None:
    shapes: dict[str, dict[str, Any]] = {
        "bert": {},
        "roberta": {"position_offset": 2, "token_types": 1},
        "distilbert": {"token_types": 0, "attention_output_dropout": False},
    }
    checkpoint = Pretrained(Bert(tiny.config(**shapes[family])), family)
    model = TSDAE(SentenceEncoder(checkpoint, tiny.tokenizer(), pooling), tie, decoder_layers)
    tiny.randomise(model).eval()
    loaded = saved_and_loaded(model, tmp_path)
    assert (loaded.tie, loaded.decoder_layers) == (tie, decoder_layers or 3)
    expected, computed = compute(model, tiny.batch()), compute(loaded, tiny.batch())
    torch.testing.assert_close(computed._asdict(), expected._asdict(), rtol=0.0, atol=0.0)  # to the last bit
