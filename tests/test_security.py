"""What comes from strangers cannot run code: models, runs, corpora, downloads."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch

from tests import tiny
from tests.scripts import Run
from tsdae.config import DataConfig, MethodConfig, TrainConfig
from tsdae.utils.imports import NAMING

ROOT = Path(__file__).parents[1]
CONFIGS = (DataConfig, MethodConfig, TrainConfig)
TEXTS = {name for config in CONFIGS for name, hint in get_type_hints(config).items() if str in (hint, *get_args(hint))}
TRAIN = "--corpus text.txt --model stranger --device cpu --precision fp32 --steps 1 --heldout 0 --output run"


class Evil:
    """A pickle that leaves a trace in the current folder where it is loaded."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("hacked",)


EVIL_CODE = "import os\nos.mkdir('hacked')\nclass Model: pass\n"


def pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"embeddings": Evil()}, protocol=2))


def weights_pickled_by_torch(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"embeddings": Evil()}, folder / "pytorch_model.bin")


def pickle_named_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Evil()))


def model_with_code(folder: Path) -> None:
    added(folder / "config.json", auto_map={"AutoModel": "evil.Model", "AutoConfig": "evil.Model"})
    (folder / "evil.py").write_text(EVIL_CODE)


def unknown_model_with_code(folder: Path) -> None:
    model_with_code(folder)
    added(folder / "config.json", model_type="strange", architectures=["StrangeModel"])


def tokenizer_with_code(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "elsewhere.json")
    named = ["evil.Model", "evil.Model"]
    added(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": named}, tokenizer_class="StrangeTokenizer")
    (folder / "evil.py").write_text(EVIL_CODE)


def encoder_of_no_family_with_code(folder: Path) -> None:
    """Both unknown: there transformers asks whether the tokenizer's code may run."""
    tokenizer_with_code(folder)
    (folder / "elsewhere.json").rename(folder / "tokenizer.json")
    added(folder / "config.json", model_type="strange")


def module_with_code(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "evil.Model"
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "evil.py").write_text(EVIL_CODE)


def shard_outside(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../outside.safetensors"}}')


def transformer_outside(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "../model"
    (folder / "modules.json").write_text(json.dumps(modules))


def added(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


FOLDERS = {
    pickled_weights: "it was not loaded, since loading could run code",
    weights_pickled_by_torch: "it was not loaded, since loading could run code",
    pickle_named_safetensors: "cannot be read as weights",
    model_with_code: "auto_map",
    unknown_model_with_code: "strange",
    tokenizer_with_code: "has no tokenizer",
    encoder_of_no_family_with_code: "strange",
    module_with_code: "the module 'evil.Model' is not implemented",
    shard_outside: "is not a file of this folder",
    transformer_outside: "points outside of the folder",
}


@pytest.mark.parametrize(("plant", "message"), FOLDERS.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_a_strangers_model_cannot_run_code(
    plant: Callable[[Path], None],
    message: str,
    run: Run,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # to whatever is asked
    shutil.copytree(place / "model", place / "stranger")
    plant(place / "stranger")
    for script, arguments in (
        ("train", TRAIN),
        ("evaluate", "stranger --pairs pairs.tsv --device cpu"),
        ("encode", "stranger --input text.txt --output a.npy --device cpu"),
    ):
        result = run(script, arguments)
        assert result.code == 2, "refused, with one line"
        assert message in result.err.splitlines()[-1]
        assert not (place / "hacked").exists()


def test_what_was_planted_would_run_code_elsewhere(place: Path) -> None:
    """The premise."""
    pickle.loads(pickle.dumps(Evil()))
    assert (place / "hacked").is_dir()
    (place / "hacked").rmdir()
    torch.save({"embeddings": Evil()}, place / "weights.bin")
    torch.load(place / "weights.bin", weights_only=False)
    assert (place / "hacked").is_dir()
    (place / "hacked").rmdir()
    (place / "evil.py").write_text(EVIL_CODE)
    exec(compile(EVIL_CODE, "evil.py", "exec"), {})
    assert (place / "hacked").is_dir()


def test_a_prepared_corpus_cannot_hold_a_pickle(run: Run, place: Path) -> None:
    tiny.prepared(place / "corpus")
    boundaries = np.array([Evil()] * 9, dtype=object)
    np.save(place / "corpus" / "boundaries.npy", boundaries, allow_pickle=True)
    flags = TRAIN.replace("text.txt", "corpus").replace("stranger", "model").replace("--heldout 0", "")
    result = run("train", flags)
    assert result.code == 2
    assert "corpus is damaged" in result.err
    assert not (place / "hacked").exists()


@pytest.fixture
def stranger(run: Run, place: Path) -> Callable[[str, str], Any]:
    """A function that resumes a stranger's run of whose settings one names code, and returns the result."""
    assert run("train", TRAIN.replace("stranger", "model")).code == 0
    (place / "run").rename(place / "given")
    (place / "evil.py").write_text(EVIL_CODE)

    def resumed(flag: str, value: str) -> Any:
        shutil.rmtree(place / "run", ignore_errors=True)
        shutil.copytree(place / "given", place / "run")
        added(place / "run" / "config.json", **{flag: value})
        try:
            return run("train", "--resume --output run --steps 2")
        finally:
            assert not (place / "hacked").exists(), flag

    return resumed


@pytest.mark.parametrize("decoy", [False, True])
def test_a_strangers_run_cannot_run_code(decoy: bool, stranger: Callable[[str, str], Any], place: Path) -> None:
    """decoy: a file of the function's own name, beside the code, so that the name seems to be a file's."""
    if decoy:
        (place / "evil.py:Model").write_text("")
    for flag in NAMING:
        result = stranger(flag, "evil.py:Model")
        read = decoy and flag == "evaluate"  # as a file of pairs, which it is not
        message = "is not a table" if read else f"the run's --{flag} is code of your own, which is not run unasked"
        assert (result.code, message in result.err) == (2, True), flag


def test_no_other_setting_of_a_strangers_run_names_code(stranger: Callable[[str, str], Any]) -> None:
    for flag in sorted(TEXTS - {*NAMING}):
        for value in ("evil.py:Model", "evil:Model"):
            stranger(flag, value)


def test_the_code_has_no_way_to_run_what_it_reads() -> None:
    """Of the package and its scripts: no eval, exec or pickle, and torch.load only of plain values."""
    calls = []
    files = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "tsdae").rglob("*.py")}
    files |= {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "scripts").glob("*.py")}
    assert {"tsdae/bert.py", "tsdae/utils/imports.py", "scripts/train.py"} < files.keys(), "sub-packages are read too"
    for file, path in files.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = {getattr(node, "module", None), *(alias.name for alias in node.names)}
                unsafe = modules & {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml"}
                assert not unsafe or file == "tsdae/utils/files.py", file  # which catches pickle's error
            if isinstance(node, ast.Call):
                arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                calls.append((file, ast.unparse(node.func), arguments))
    loads = [(file, arguments) for file, name, arguments in calls if name == "torch.load"]
    assert loads
    assert all(arguments.get("weights_only") == "True" for _, arguments in loads)
    for file, name, arguments in calls:
        where = f"{file}: {name}"
        assert name not in ("eval", "exec", "compile", "__import__", "os.system"), where
        assert not name.startswith("pickle."), where
        assert not name.endswith(("extractall", "spec.loader.exec_module")) or file == "tsdae/utils/imports.py", where
        assert arguments.get("trust_remote_code", "False") == "False", where
        assert arguments.get("allow_pickle", "False") == "False", where
        assert arguments.get("shell", "False") == "False", where
