"""An encoder as an ONNX file: token ids and mask in, sentence vectors out, pooling and normalisation in the graph.

Beside the file stands tokenizer.json, which cuts and pads, so that `tokenizers`, `onnxruntime` and `numpy` are all that
a reader needs (scripts/README.md has the script).

# B sentences, L padded length, D hidden size
"""

from __future__ import annotations

import importlib
import logging
import re
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsdae import ops
from tsdae.commands.settings import ExportConfig
from tsdae.encoder import SentenceEncoder, pool
from tsdae.evaluation.pairs import load_stsb
from tsdae.evaluation.scores import table
from tsdae.evaluation.sts import evaluate_sts
from tsdae.hub.model_folder import encoder_folder
from tsdae.packing import Layout, Packed
from tsdae.text.tokenization import plain_backend, token_ids
from tsdae.utils.files import atomic, check_can_write, first_line
from tsdae.utils.progress import print_note

INPUTS, OUTPUT = ("input_ids", "attention_mask"), "sentence_embedding"
ONE_FILE = 2**31 - 2**26  # bytes of weights that a protobuf of 2 GiB holds beside the graph
TRIED = (
    "A man plays a guitar.",
    "Dogs run.",
    "It rains in the mountains, and the river is high and brown this spring.",
)
ALLOWED = 1e-4  # of the largest number in the vectors: far above rounding, far below any error of the graph


def export_onnx(model: str, config: ExportConfig) -> Path:
    """Write ``config.onnx`` and, beside it, tokenizer.json; print how far its vectors are from those of `encode`.

    ValueError, before anything is written: packages, model, opset or folder that cannot be used.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ValueError(f"--onnx needs {package}: python -m pip install onnx onnxscript onnxruntime") from error
    path = Path(config.onnx)
    check_can_write(path.parent, "--onnx: the folder")
    check_opset(config.opset)
    encoder = SentenceEncoder.from_pretrained(encoder_folder(model), config.pooling)
    tokenizer = padding_tokenizer(encoder)
    beside = path.parent / "tokenizer.json"
    if tokenizer is not None and beside.is_file() and beside.read_text(encoding="utf-8") != tokenizer:
        raise ValueError(f"{beside} belongs to another model or maximum length; give --onnx in another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as work:
        made = Path(work) / path.name
        large = sum(weight.nbytes for weight in encoder.state_dict().values()) > ONE_FILE
        write_graph(encoder, made, config.opset, large)
        exact = OnnxEncoder(encoder, made)
        _check(encoder, exact)
        if config.quantize:
            whole, made = made, Path(work) / "int8" / path.name
            _quantize(whole, made, large)
            _print_loss(exact, OnnxEncoder(encoder, made))
        written = sorted(made.parent.glob(f"{path.name}*"))  # the graph, and its weights where they are too large
        size = sum(file.stat().st_size for file in written)
        for file in reversed(written):
            shutil.move(file, path.parent / file.name)
    if tokenizer is None:
        print_note(f"{type(encoder.tokenizer).__name__} is written in Python: there is no tokenizer.json to write")
    else:
        with atomic(beside) as staged:
            staged.write_text(tokenizer, encoding="utf-8")
    print(f"wrote {path}, {size / 1e6:,.1f} MB: {' and '.join(INPUTS)} -> {OUTPUT}, {encoder.pooling} pooling")
    return path


def check_opset(opset: int) -> None:
    """Raise ValueError if onnxruntime does not run such graphs: it is given one that returns its input."""
    import onnxruntime
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "same", [x], [y])
    try:
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        onnxruntime.InferenceSession(made.SerializeToString())
    except Exception as error:  # it has kinds of its own, none of which is public
        highest = re.search(r"till (opset \d+)", str(error))
        why = f"its highest is {highest[1]}" if highest else first_line(error)
        raise ValueError(f"onnxruntime {onnxruntime.__version__} does not support --opset {opset}: {why}") from error


def padding_tokenizer(encoder: SentenceEncoder) -> str | None:
    """Return tokenizer.json that cuts to the encoder's length and pads a batch; None for a tokenizer without one."""
    tokenizer, vocabulary = encoder.tokenizer, encoder.vocabulary
    if not tokenizer.is_fast:
        return None
    backend = plain_backend(tokenizer)
    padding = tokenizer.pad_token or backend.id_to_token(vocabulary.ordinary_ids[0])  # any: the mask hides it
    try:
        backend.enable_truncation(encoder.max_length, direction="left" if vocabulary.cut_left else "right")
        backend.enable_padding(pad_id=backend.token_to_id(padding), pad_token=padding)
        return str(backend.to_str(pretty=True))
    finally:
        plain_backend(tokenizer)


class PaddedLayout(Layout):
    """A layout of padded rows: T = B * L, the padding among them, on the right of each sentence.

    The model computes the same with it as with packed rows, and more of it; an exported graph has no packed rows.

    mask_BL: 1 for tokens, 0 for the padding. Works with the plain versions of `ops` alone.
    """

    def __init__(self, mask_BL: Tensor) -> None:
        self.batch, self.longest = mask_BL.shape
        self.rows = self.token_count = self.batch * self.longest
        sentences, positions = (torch.arange(size, device=mask_BL.device) for size in mask_BL.shape)
        self.boundaries = torch.arange(self.batch + 1, device=mask_BL.device) * self.longest
        self.lengths_B = mask_BL.sum(1)
        self.sentence_T = sentences[:, None].expand(mask_BL.shape).reshape(-1)
        self.position_T = positions.expand(mask_BL.shape).reshape(-1)
        self.cache, self.is_full, self.real_BL = {}, True, mask_BL.bool()

    def pad(self, rows_TX: Tensor) -> Tensor:
        rows_BLX = super().pad(rows_TX)
        return rows_BLX.masked_fill(~self.real_BL.view(self.batch, self.longest, *[1] * (rows_BLX.ndim - 2)), 0)


class PaddedEncoder(nn.Module):
    """What the graph computes: `SentenceEncoder` on padded rows, with `encode`'s normalisation."""

    def __init__(self, encoder: SentenceEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return sentence_BD of padded ids and mask, int64 [B, L]."""
        pooling, bert, layout = self.encoder.pooling, self.encoder.bert, PaddedLayout(attention_mask)
        packed = Packed(input_ids.reshape(-1), layout.boundaries, layout.longest)
        with ops.plain():
            hidden = bert(packed, layout, first_only=pooling == "cls")
        sentence_BD = hidden if pooling == "cls" else pool(hidden, layout, pooling)
        return F.normalize(sentence_BD, dim=1) if self.encoder.normalize else sentence_BD


def write_graph(encoder: SentenceEncoder, path: Path, opset: int, large: bool = False) -> None:
    """Write the graph, batch and length dynamic. large: weights in a file of their own, PATH.data."""
    ids_BL = torch.ones(2, 3, dtype=torch.int64)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=encoder.bert.config.longest_sentence)}
    talk = logging.getLogger("torch.onnx")
    level = talk.level
    try:
        talk.setLevel(logging.ERROR)  # packages for images that are not installed
        with warnings.catch_warnings(action="ignore"):
            program = torch.onnx.export(
                PaddedEncoder(encoder).eval(),
                (ids_BL, torch.ones_like(ids_BL)),
                input_names=INPUTS,
                output_names=(OUTPUT,),
                dynamic_shapes=dict.fromkeys(INPUTS, axes),
                opset_version=opset,
                verbose=False,
            )
    finally:
        talk.setLevel(level)
    assert program is not None
    if (found := program.model.opset_imports[""]) != opset:
        raise ValueError(f"--opset {opset}: the exporter of PyTorch {torch.__version__} wrote opset {found}")
    program.save(path, external_data=large)


class OnnxEncoder:
    """The graph with the ``encode`` of `SentenceEncoder`, run by onnxruntime on as many threads as PyTorch."""

    def __init__(self, encoder: SentenceEncoder, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.encoder = encoder
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def encode(self, sentences: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """Return vectors, float32 [B, D], in the order given."""
        tokens = token_ids(sentences, self.encoder.tokenizer, self.encoder.max_length)
        ids = list(tokens.sentences())
        longest_first = np.argsort(-tokens.lengths_B, kind="stable")
        vectors = np.empty((len(ids), self.encoder.bert.config.width), dtype=np.float32)
        for start in range(0, len(ids), batch_size):
            rows_B = longest_first[start : start + batch_size]
            lengths_B = tokens.lengths_B[rows_B]
            mask_BL = np.arange(lengths_B[0]) < lengths_B[:, None]
            ids_BL = np.zeros(mask_BL.shape, dtype=np.int64)
            ids_BL[mask_BL] = np.concatenate([ids[row] for row in rows_B])
            (vectors[rows_B],) = self.session.run(
                None, dict(zip(INPUTS, (ids_BL, mask_BL.astype(np.int64)), strict=True))
            )
        return vectors


def _check(encoder: SentenceEncoder, exact: OnnxEncoder) -> None:
    """Print how far the graph's vectors are from those of `encode`; ValueError if that is more than rounding."""
    expected_BD = encoder.encode(TRIED)
    off = float(np.abs(exact.encode(TRIED) - expected_BD).max())
    if off > ALLOWED * max(1.0, float(np.abs(expected_BD).max())):
        raise ValueError(f"the ONNX model's vectors differ from those of encode by {off:.2g}; nothing was written")
    print_note(f"largest difference from encode in fp32: {off:.1e}")


def _quantize(whole: Path, path: Path, large: bool) -> None:
    """Write the graph with weights of 8 bits; activations get theirs as they come (dynamic)."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path.parent.mkdir()
    root, level = logging.getLogger(), logging.getLogger().level
    try:
        root.setLevel(logging.ERROR)  # it advises a preprocessing that the exporter has done
        quantize_dynamic(whole, path, weight_type=QuantType.QInt8, use_external_data_format=large)
    finally:
        root.setLevel(level)


def _print_loss(exact: OnnxEncoder, quantized: OnnxEncoder) -> None:
    """Print what int8 costs on STS-B, with paired intervals; a note where STS-B cannot be had."""
    try:
        stsb: dict[str, Any] = load_stsb()
    except ValueError as error:
        print_note(f"{error}; the int8 model was not scored")
        return
    rows = [
        (name, {split: evaluate_sts(encoder, stsb[split]) for split in ("dev", "test")})
        for name, encoder in (("fp32", exact), ("int8", quantized))
    ]
    print(table(rows, differences=True))
