"""`tsdae export`: the graph is `encode`, run by onnxruntime; and the guide's script embeds without PyTorch."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from tokenizers import Tokenizer
from torch.testing import assert_close
from transformers import ElectraConfig, ElectraModel

from tests import families, tiny
from tests.families import FAMILIES
from tests.scripts import PAIRS, SCRIPTS, Run
from tests.tolerances import FLOAT32
from tsdae.commands import export
from tsdae.commands.export import OnnxEncoder, PaddedEncoder, padding_tokenizer, write_graph
from tsdae.encoder import POOLINGS, SentenceEncoder
from tsdae.evaluation.pairs import Pairs, load_pairs
from tsdae.hub.conversion import read_pretrained
from tsdae.text.tokenization import token_ids

GUIDE = (SCRIPTS / "README.md").read_text("utf-8")
LONG = "the dog runs very slowly on the green grass " * 6
RAGGED = [*tiny.SENTENCES, LONG, ""]
ALL = list(itertools.product(FAMILIES, POOLINGS))
QUICK = list(zip(FAMILIES, POOLINGS, strict=False))  # an export takes seconds, so the others are marked slow


def encoder_of(family: str, pooling: str, folder: Path, **changes: int) -> SentenceEncoder:
    """A random encoder. Max pooling is normalised; of the others that would hide a wrong divisor."""
    families.save(folder, family, **changes)
    return SentenceEncoder(read_pretrained(folder), tiny.tokenizer(), pooling, normalize=pooling == "max").eval()


@pytest.mark.parametrize(("family", "pooling"), ALL)
def test_padded_rows_are_packed_rows(family: str, pooling: str, tmp_path: Path) -> None:
    """The module that is exported, whatever stands in the padding."""
    encoder = encoder_of(family, pooling, tmp_path)
    packed = families.ragged().to("cpu")
    inputs = families.padded(packed, padding_id=7)
    with torch.no_grad():
        expected_BD = encoder(packed)
        expected_BD = torch.nn.functional.normalize(expected_BD, dim=1) if encoder.normalize else expected_BD
        assert_close(PaddedEncoder(encoder)(**inputs), expected_BD, **FLOAT32)


@pytest.mark.parametrize(
    ("family", "pooling"), [pytest.param(*one, marks=[] if one in QUICK else pytest.mark.slow) for one in ALL]
)
def test_onnxruntime_gives_what_encode_gives(family: str, pooling: str, tmp_path: Path) -> None:
    """In batches of several sizes and lengths, down to one sentence of two tokens."""
    layers = {"n_layers" if family == "distilbert" else "num_hidden_layers": 1}  # each takes a second to export
    encoder = encoder_of(family, pooling, tmp_path, **layers)
    write_graph(encoder, tmp_path / "model.onnx", 20)
    inputs = onnxruntime.InferenceSession(tmp_path / "model.onnx").get_inputs()
    assert not any(isinstance(size, int) for value in inputs for size in value.shape), "dynamic"
    exported = OnnxEncoder(encoder, tmp_path / "model.onnx")
    expected = encoder.encode(RAGGED)
    assert np.ptp(expected, axis=0).min() > 0.01, "the premise: sentences differ"
    for size in (64, 4, 1):
        np.testing.assert_allclose(exported.encode(RAGGED, size), expected, rtol=0, atol=1e-5)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model `model`: max_length 12, so that sentences are cut; normalised."""
    monkeypatch.chdir(tmp_path)
    encoder = tiny.encoder("mean", dtype=torch.float32, layers=1)
    encoder.max_length, encoder.normalize = 12, True
    encoder.save_pretrained("model")
    return tmp_path


def test_the_script_of_the_guide_embeds_without_torch(here: Path, run: Run) -> None:
    result = run("export", "model --onnx exported/model.onnx")
    assert result.code == 0, result.err
    assert re.fullmatch(r"wrote exported/model.onnx, 0\.\d MB: .* mean pooling\n", result.out)
    assert "largest difference from encode in fp32: " in result.err
    assert sorted(path.name for path in Path("exported").iterdir()) == ["model.onnx", "tokenizer.json"]
    (script,) = re.findall(r"<!-- run by tests/test_export.py -->\n```python\n(.*?)```", GUIDE, re.S)
    Path("script.py").write_text(script + "np.save('vectors.npy', vectors)\n")
    code = "import sys\nfor name in ('torch', 'transformers', 'tsdae'): sys.modules[name] = None\n"
    subprocess.run([sys.executable, "-c", code + "exec(open('script.py').read())"], check=True)
    expected = SentenceEncoder.from_pretrained("model").encode(["A man plays a guitar.", "Dogs run."])
    np.testing.assert_allclose(np.load("vectors.npy"), expected, rtol=0, atol=1e-5)
    session = onnxruntime.InferenceSession("exported/model.onnx")
    inputs = [(value.name, value.type, len(value.shape)) for value in session.get_inputs()]
    assert inputs == [("input_ids", "tensor(int64)", 2), ("attention_mask", "tensor(int64)", 2)]


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_tokenizer_beside_it_cuts_and_pads_as_encode_does(side: str, here: Path) -> None:
    encoder = SentenceEncoder.from_pretrained("model")
    encoder.tokenizer.truncation_side = side
    encoder = SentenceEncoder(encoder.bert, encoder.tokenizer, max_length=12)
    written = Tokenizer.from_str(str(padding_tokenizer(encoder))).encode_batch(RAGGED)
    expected = list(token_ids(RAGGED, encoder.tokenizer, 12).sentences())
    assert max(map(len, expected)) == 12, "the premise: something is cut"
    found = [[i for i, real in zip(one.ids, one.attention_mask, strict=True) if real] for one in written]
    assert found == expected
    assert {len(one.ids) for one in written} == {12}
    assert encoder.tokenizer.backend_tokenizer.padding is None, "the encoder's own tokenizer pads nothing"


def test_int8_is_smaller_and_its_loss_is_printed(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("pairs.tsv").write_text("sentence1\tsentence2\tscore\n" + "".join(PAIRS), encoding="utf-8")
    pairs: Pairs = load_pairs("pairs.tsv")
    tiny.encoder("cls", dtype=torch.float32, width=192, feed_forward=768, layers=1).save_pretrained("wide")
    write_graph(SentenceEncoder.from_pretrained("wide"), Path("whole.onnx"), 20)
    monkeypatch.setattr(export, "write_graph", lambda encoder, path, *_: shutil.copy("whole.onnx", path))
    result = run("export", "wide --onnx int8/model.onnx --quantize int8")
    assert result.code == 0, result.err
    assert "the int8 model was not scored" in result.err
    assert Path("int8/model.onnx").stat().st_size < 0.5 * Path("wide/model.safetensors").stat().st_size
    monkeypatch.setattr(export, "load_stsb", lambda: {"dev": pairs, "test": pairs})
    result = run("export", "wide --onnx int8/model.onnx --quantize int8")
    assert result.code == 0, result.err
    assert "Difference from fp32" in result.out
    assert re.search(r"^int8  test Spearman +[+-]\d", result.out, re.M)
    vectors = OnnxEncoder(SentenceEncoder.from_pretrained("wide"), Path("int8/model.onnx")).encode(RAGGED)
    expected = SentenceEncoder.from_pretrained("wide").encode(RAGGED)
    off = np.abs(vectors - expected).max() / np.abs(expected).max()
    assert 1e-5 < off < 0.2, "near, and not the graph of before"


def test_weights_that_one_file_does_not_hold(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "ONE_FILE", 0)
    assert run("export", "model --onnx exported/model.onnx").code == 0
    assert sorted(path.name for path in Path("exported").iterdir()) == [
        *("model.onnx", "model.onnx.data", "tokenizer.json")
    ]
    encoder = SentenceEncoder.from_pretrained("model")
    vectors = OnnxEncoder(encoder, Path("exported/model.onnx")).encode(RAGGED)
    np.testing.assert_allclose(vectors, encoder.encode(RAGGED), rtol=0, atol=1e-5)


def test_a_graph_that_is_wrong_is_not_written(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        PaddedEncoder, "forward", lambda self, input_ids, attention_mask: torch.zeros(2, 24) + input_ids
    )
    monkeypatch.setattr(OnnxEncoder, "encode", lambda self, sentences: np.zeros((len(sentences), 24)))
    monkeypatch.setattr(export, "write_graph", lambda encoder, path, *_: path.write_bytes(b""))
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: None)
    result = run("export", "model --onnx exported/model.onnx")
    assert result.code == 2
    assert "the ONNX model's vectors differ from those of encode by" in result.err
    assert list(Path("exported").iterdir()) == []


@pytest.mark.slow
def test_an_older_opset(here: Path) -> None:
    encoder = SentenceEncoder.from_pretrained("model")
    write_graph(encoder, here / "model.onnx", 18)
    vectors = OnnxEncoder(encoder, here / "model.onnx").encode(RAGGED)
    np.testing.assert_allclose(vectors, encoder.encode(RAGGED), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nothing --onnx exported/model.onnx", "there is no model folder nothing"),
        ("empty --onnx exported/model.onnx", "empty is not a model folder: it has no config.json"),
        ("electra --onnx exported/model.onnx", "electra"),
        ("model --onnx exported/model.onnx --opset 99", "does not support --opset 99: "),
        ("model --onnx exported/model.onnx --opset 17", "--opset must be at least 18"),
        ("model --onnx exported", "--onnx exported must end in .onnx"),
        (
            "model --onnx model/model.onnx",
            "tokenizer.json belongs to another model or maximum length; give --onnx in another folder",
        ),
        ("model --onnx model/config.json/model.onnx", "is a file, not a folder"),
    ],
)
def test_what_cannot_be_exported(arguments: str, message: str, here: Path, run: Run) -> None:
    Path("empty").mkdir()
    shape = {"vocab_size": 90, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    ElectraModel(ElectraConfig(**shape, embedding_size=24, intermediate_size=40)).save_pretrained("electra")
    tiny.tokenizer().save_pretrained("electra")
    before = {path: path.read_bytes() for path in Path("model").rglob("*") if path.is_file()}
    result = run("export", arguments)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
    assert not Path("exported").exists()
    assert {path: path.read_bytes() for path in Path("model").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_package_that_is_missing(package: str, here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = run("export", "model --onnx exported/model.onnx")
    assert result.code == 2
    assert result.err == (
        f"tsdae export: error: --onnx needs {package}: python -m pip install onnx onnxscript onnxruntime\n"
    )
