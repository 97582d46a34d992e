"""Model folders: every way in which weights lie on disk, what is refused and named, and the way back."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining, PreTrainedModel

from tests import families
from tests.families import FAMILIES, VOCABULARY, padded, ragged
from tests.tolerances import FLOAT64
from tsdae.bert import Bert, BertConfig, LanguageModelHead, Pretrained
from tsdae.hub.conversion import UnsupportedArchitecture, read_pretrained, write_pretrained

every_family = pytest.mark.parametrize("family", FAMILIES)
# The last weight of the last layer and of the head: the last to be read.
LAST_WEIGHT = "encoder.layer.2.output.LayerNorm.bias"


def assert_same_bert(checkpoint: Pretrained, theirs: PreTrainedModel) -> None:
    """The encoder computes what transformers' model computes (the parts are compared in test_bert_parity)."""
    encoder = theirs.base_model if hasattr(theirs, theirs.base_model_prefix) else theirs
    with torch.no_grad():
        expected_TD = families.hidden(encoder.double(), ragged())
        hidden_TD = checkpoint.bert.double().eval()(ragged())
    assert expected_TD.std() > 0.1
    assert_close(hidden_TD, expected_TD, **FLOAT64)


def assert_same_logits(checkpoint: Pretrained, theirs: PreTrainedModel) -> None:
    assert checkpoint.head is not None
    bert = checkpoint.bert.double().eval()
    head = LanguageModelHead(bert.config).double()
    head.load_state_dict(checkpoint.head)
    inputs = padded(ragged(), theirs.config.pad_token_id)
    with torch.no_grad():
        expected_TV = theirs.double()(**inputs).logits[inputs["attention_mask"].bool()]
        assert_close(head(bert(ragged()), bert.embeddings.words.weight), expected_TV, **FLOAT64)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


Rename = Callable[[str], str | None]


def edit_weights(folder: Path, rename: Rename = str, add: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Renames the weights of a folder (None drops one) and adds others. Returns what lies there now."""
    path = folder / "model.safetensors"
    weights = {new: tensor for old, tensor in load_file(path).items() if (new := rename(old)) is not None}
    save_file(weights | (add or {}), path, {"format": "pt"})
    return weights | (add or {})


# ---------------------------------------------------------------------------------------------------------------
# Where weights lie, and under which names


def as_safetensors(folder: Path) -> None:
    pass  # as transformers writes it


def as_sharded_safetensors(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    in_shards(folder, weights, "model-0000{}-of-00002.safetensors", "model.safetensors.index.json", save_file)


def as_bin(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def as_sharded_bin(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    in_shards(folder, weights, "pytorch_model-0000{}-of-00002.bin", "pytorch_model.bin.index.json", torch.save)


def in_shards(folder: Path, weights: dict[str, Tensor], shard: str, index: str, save: Callable[..., Any]) -> None:
    place = {name: shard.format(1 + i % 2) for i, name in enumerate(sorted(weights))}
    for file in set(place.values()):
        save({name: weights[name] for name in weights if place[name] == file}, folder / file)
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": place}))


@pytest.mark.parametrize("lay_out", [as_safetensors, as_sharded_safetensors, as_bin, as_sharded_bin])
def test_weights_lie_in_one_file_or_several(lay_out: Callable[[Path], None], tmp_path: Path) -> None:
    theirs = families.save(tmp_path, "bert")
    lay_out(tmp_path)
    assert_same_bert(read_pretrained(tmp_path), theirs)


def test_transformers_own_shards_are_read(tmp_path: Path) -> None:
    theirs = families.build("roberta")
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same_bert(read_pretrained(tmp_path), theirs)


def test_gamma_and_beta(tmp_path: Path) -> None:
    """Checkpoints that came from TensorFlow call a layer norm's weight gamma and its bias beta."""
    theirs = families.save(tmp_path, "bert", AutoModelForMaskedLM)
    weights = edit_weights(tmp_path, lambda name: re.sub(r"(?<=LayerNorm\.)(weight|bias)$", _tensorflow_name, name))
    assert sum(name.endswith((".gamma", ".beta")) for name in weights) == 2 * (1 + 2 * 3 + 1)
    checkpoint = read_pretrained(tmp_path)
    assert_same_bert(checkpoint, theirs)
    assert_same_logits(checkpoint, theirs)


def _tensorflow_name(match: re.Match[str]) -> str:
    return {"weight": "gamma", "bias": "beta"}[match.group()]


@pytest.mark.parametrize(
    ("family", "bias"), [("bert", "cls.predictions.bias"), ("roberta", "lm_head.bias"), ("camembert", "lm_head.bias")]
)
def test_bias_of_the_head_under_decoder(family: str, bias: str, tmp_path: Path) -> None:
    """Some versions of transformers saved it there only."""
    theirs = families.save(tmp_path, family, AutoModelForMaskedLM)
    moved = bias.replace(".bias", ".decoder.bias")
    weights = edit_weights(tmp_path, lambda name: moved if name == bias else name)
    assert moved in weights
    assert_same_logits(read_pretrained(tmp_path), theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_become_fp32(dtype: torch.dtype, tmp_path: Path) -> None:
    theirs = families.build("bert", AutoModelForPreTraining).to(dtype)
    theirs.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")["bert." + LAST_WEIGHT].dtype == dtype
    checkpoint = read_pretrained(tmp_path)
    assert checkpoint.head
    assert checkpoint.pooler
    read = [*checkpoint.bert.parameters(), *checkpoint.head.values(), *checkpoint.pooler.values()]
    assert {tensor.dtype for tensor in read} == {torch.float32}
    write_pretrained(tmp_path, checkpoint)
    assert AutoModel.from_pretrained(tmp_path).dtype == torch.float32
    assert_same_bert(checkpoint, theirs)


# ---------------------------------------------------------------------------------------------------------------
# What is missing, unknown, or without a use


@every_family
def test_every_missing_weight_is_an_error_that_names_it(family: str, tmp_path: Path) -> None:
    families.save(tmp_path, family, **{"n_layers" if family == "distilbert" else "num_hidden_layers": 1})
    weights = load_file(tmp_path / "model.safetensors")
    needed = [name for name in weights if not name.startswith("pooler.")]
    assert len(needed) == (3 if family == "distilbert" else 4) + 1 + 16
    for missing in needed:
        save_file({name: tensor for name, tensor in weights.items() if name != missing}, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=f"lack {re.escape(missing)}$"):
            read_pretrained(tmp_path)


def test_unknown_weight_is_named_in_a_warning(tmp_path: Path) -> None:
    theirs = families.save(tmp_path, "bert")
    edit_weights(tmp_path, add={"encoder.layer.0.adapter.weight": torch.ones(3)})
    with pytest.warns(UserWarning, match=r"unused weights: encoder\.layer\.0\.adapter\.weight$"):
        checkpoint = read_pretrained(tmp_path)
    assert_same_bert(checkpoint, theirs)


def test_known_weights_without_use_are_passed_over_silently(tmp_path: Path) -> None:
    """The next-sentence head, pooler and tied copies, and the buffers that old versions saved."""
    theirs = families.save(tmp_path, "bert", AutoModelForPreTraining)
    edit_weights(
        tmp_path,
        add={
            "bert.embeddings.position_ids": torch.arange(20)[None],
            "bert.embeddings.token_type_ids": torch.zeros(1, 20, dtype=torch.int64),
            "cls.predictions.decoder.weight": theirs.get_input_embeddings().weight.detach().clone(),
            "cls.predictions.decoder.bias": theirs.cls.predictions.bias.detach().clone(),
        },
    )
    assert {"cls.seq_relationship.weight", "bert.pooler.dense.weight"} <= load_file(
        tmp_path / "model.safetensors"
    ).keys()
    assert_same_bert(read_pretrained(tmp_path), theirs)


def test_output_matrix_that_is_not_tied_is_named(tmp_path: Path) -> None:
    """Ours is always the word-embedding matrix: a model that had another would be read wrongly in silence."""
    theirs = families.save(tmp_path, "roberta", AutoModelForMaskedLM)
    other = theirs.get_input_embeddings().weight.detach() + 1
    edit_weights(tmp_path, add={"lm_head.decoder.weight": other})
    with pytest.warns(UserWarning, match=r"unused weights: lm_head\.decoder\.weight$"):
        read_pretrained(tmp_path)


def test_half_a_head_is_left_and_named(tmp_path: Path) -> None:
    families.save(tmp_path, "bert", AutoModelForMaskedLM)
    edit_weights(tmp_path, lambda name: None if name == "cls.predictions.transform.dense.weight" else name)
    with pytest.warns(
        UserWarning, match=r"lack cls\.predictions\.transform\.dense\.weight; loading the encoder without"
    ):
        assert read_pretrained(tmp_path).head is None


# ---------------------------------------------------------------------------------------------------------------
# The way back


@every_family
def test_load_and_save_gives_identical_tensors(family: str, tmp_path: Path) -> None:
    """Pooler included: nothing here uses it, yet it comes back as it was."""
    theirs = families.save(tmp_path / "theirs", family)
    (tmp_path / "ours").mkdir()
    write_pretrained(tmp_path / "ours", read_pretrained(tmp_path / "theirs"))
    before, after = (load_file(tmp_path / side / "model.safetensors") for side in ("theirs", "ours"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(name.startswith("pooler.") for name in after) == (family != "distilbert")

    again = AutoModel.from_pretrained(tmp_path / "ours").eval()
    assert type(again) is type(theirs)
    with torch.no_grad():
        assert torch.equal(families.hidden(again, ragged()), families.hidden(theirs, ragged()))


@every_family
def test_new_weights_reach_the_folder(family: str, tmp_path: Path) -> None:
    """What is written is the model in memory, in both directions: transformers computes what ours computes."""
    families.save(tmp_path, family, AutoModelForMaskedLM)
    checkpoint = read_pretrained(tmp_path)
    families.randomise(checkpoint.bert, seed=5)
    write_pretrained(tmp_path, checkpoint)
    assert_same_bert(checkpoint, AutoModel.from_pretrained(tmp_path).eval())
    assert_same_bert(read_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path).eval())


def test_settings_of_the_source_are_kept(tmp_path: Path) -> None:
    families.save(tmp_path, "camembert", hidden_dropout_prob=0.25)
    edit_config(tmp_path, note_of_the_author="keep me")
    before = json.loads((tmp_path / "config.json").read_text())
    write_pretrained(tmp_path, read_pretrained(tmp_path))
    after = json.loads((tmp_path / "config.json").read_text())
    assert after == before | {"architectures": ["CamembertModel"]}
    assert after["note_of_the_author"] == "keep me"


@pytest.mark.parametrize(
    ("family", "shape"),
    [
        ("bert", {}),
        ("roberta", {"position_offset": 4}),
        ("distilbert", {"token_types": 0, "attention_output_dropout": False}),
    ],
)
def test_model_made_in_memory_is_saved_as_the_family_of_its_shape(
    family: str, shape: dict[str, Any], tmp_path: Path
) -> None:
    config = BertConfig(VOCABULARY, width=24, layers=2, heads=3, feed_forward=40, positions=20, **shape)
    checkpoint = Pretrained(Bert(config))
    families.randomise(checkpoint.bert)
    write_pretrained(tmp_path, checkpoint)
    theirs = AutoModel.from_pretrained(tmp_path).eval()
    assert theirs.config.model_type == family
    assert_same_bert(checkpoint, theirs)
    assert_same_bert(read_pretrained(tmp_path), theirs)


def test_model_of_no_known_shape_is_refused_before_it_is_trained() -> None:
    config = BertConfig(VOCABULARY, width=24, layers=1, heads=3, feed_forward=40, token_types=0)
    with pytest.raises(ValueError, match=r"cannot be saved as any of bert.*token_types=0"):
        Pretrained(Bert(config))


# ---------------------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    ("family", "setting", "value"),
    [
        ("bert", "hidden_act", "gelu_new"),
        ("roberta", "hidden_act", "relu"),
        ("distilbert", "activation", "relu"),
        ("bert", "position_embedding_type", "relative_key"),
        ("bert", "is_decoder", True),
        ("bert", "add_cross_attention", True),
        ("roberta", "is_encoder_decoder", True),
        ("bert", "tie_word_embeddings", False),
        ("bert", "pruned_heads", {"0": [1]}),
        ("bert", "quantization_config", {"load_in_8bit": True}),
        ("bert", "auto_map", {"AutoModel": "modeling.OtherBert"}),
    ],
)
def test_setting_that_is_not_implemented_is_refused_by_name(
    family: str, setting: str, value: Any, tmp_path: Path
) -> None:
    families.save(tmp_path, family)
    edit_config(tmp_path, **{setting: value})
    with pytest.raises(ValueError, match=rf"config\.json: {setting} = .* is not implemented"):
        read_pretrained(tmp_path)


def test_other_architecture_is_named_with_the_list_of_supported_ones(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mpnet", "architectures": ["MPNetModel"]}))
    with pytest.raises(UnsupportedArchitecture) as caught:
        read_pretrained(tmp_path)
    assert all(name in str(caught.value) for name in ("'mpnet'", "MPNetModel", *FAMILIES))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 25}, "hidden size 25 is not a multiple of 3 attention heads"),
        ({"hidden_size": "24"}, r"config\.json: hidden_size must be a whole number, got '24'$"),
        ({"num_hidden_layers": 2.5}, r"config\.json: num_hidden_layers must be a whole number, got 2.5$"),
        ({"vocab_size": None}, r"config\.json lacks vocab_size$"),
        ({"hidden_dropout_prob": 1.5}, r"config\.json: hidden_dropout_prob must be in \[0, 1\), got 1.5$"),
        ({"layer_norm_eps": math.nan}, r"config\.json: layer_norm_eps must be in \[0, 1\], got nan$"),
        ({"initializer_range": math.inf}, r"config\.json: initializer_range must be at least 0 and finite, got inf$"),
        ({"intermediate_size": -1}, r"config\.json: intermediate_size must be in \[1, 10000000\], got -1$"),
        ({"type_vocab_size": 0}, r"config\.json: type_vocab_size must be in \[1, 1000000\], got 0$"),
        ({"num_hidden_layers": True}, r"config\.json: num_hidden_layers must be a whole number, got True$"),
        ({"max_position_embeddings": 2}, r"config\.json: max_position_embeddings must be in \[3, .*, got 2$"),
        ({"model_type": ["bert"]}, r"config\.json: model_type must be text, got \['bert'\]$"),
        ({"architectures": {"a": 1}}, r"config\.json: architectures must be a list of texts, got \{'a': 1\}$"),
        ({"hidden_size": 48}, r"shape \(90, 24\), config.json asks for \(90, 48\)"),
        ({"vocab_size": 91}, r"shape \(90, 24\), config.json asks for \(91, 24\)"),
        ({"num_hidden_layers": 4}, r"lack encoder\.layer\.3\.\S+, .* and 11 more"),
    ],
)
def test_config_that_does_not_fit(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    families.save(tmp_path, "bert")
    edit_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        read_pretrained(tmp_path)


def test_padding_id_that_positions_cannot_begin_after(tmp_path: Path) -> None:
    families.save(tmp_path, "roberta")
    edit_config(tmp_path, pad_token_id=None)
    with pytest.raises(ValueError, match=r"config\.json lacks pad_token_id$"):
        read_pretrained(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited by Linux's own means")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be in"),
        ({"num_hidden_layers": 3000}, r"num_hidden_layers is 3000, and the weights are 55 tensors$"),
        ({"hidden_size": 999_999}, r"asks for \(90, 999999\)$"),
        ({"vocab_size": 10**8}, r"asks for \(100000000, 24\)$"),
        ({"max_position_embeddings": 10**8}, r"asks for \(100000000, 24\)$"),
        ({"intermediate_size": 10**7}, r"asks for \(10000000, 24\)$"),
    ],
)
def test_sizes_that_the_weights_do_not_have_are_never_allocated(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    import resource

    families.save(tmp_path, "bert")
    edit_config(tmp_path, **changes)
    before, in_use = resource.getrlimit(resource.RLIMIT_AS), int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (in_use * resource.getpagesize() + 2**30, before[1]))
    said = ""
    try:
        read_pretrained(tmp_path)
    except (ValueError, MemoryError, RuntimeError) as error:
        said = str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert re.search(message, said)


def test_a_stored_table_of_sines_is_the_one_that_automodel_uses(tmp_path: Path) -> None:
    families.save(tmp_path, "distilbert", sinusoidal_pos_embds=True)
    table = load_file(tmp_path / "model.safetensors")["embeddings.position_embeddings.weight"]
    assert table[0].abs().max() < 1, "the premise: random numbers; of sines the first row would be zeros and ones"
    assert_same_bert(read_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path).eval())
    write_pretrained(tmp_path, read_pretrained(tmp_path))
    assert_same_bert(read_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path).eval())


def test_config_without_a_size(tmp_path: Path) -> None:
    families.save(tmp_path, "distilbert")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k not in ("dim", "n_heads")}))
    with pytest.raises(ValueError, match=r"config\.json lacks dim, n_heads$"):
        read_pretrained(tmp_path)


NAMES = ["encoder.layer.1.attention.self.key.weight", "cls.predictions.bias"]


@pytest.mark.parametrize("name", NAMES, ids=["encoder", "head"])
@pytest.mark.parametrize("wrong", ["shape", "type"])
def test_weight_of_a_wrong_shape_or_type_is_named(name: str, wrong: str, tmp_path: Path) -> None:
    """The key is one of three that are laid end to end, so its own shape has to be looked at.

    In the head, whose bias many leave as it is when they add words, it costs the head alone.
    """
    theirs = families.save(tmp_path, "bert", AutoModelForMaskedLM)
    prefix = "bert." if name.startswith("encoder") else ""
    right = load_file(tmp_path / "model.safetensors")[prefix + name]
    edit_weights(
        tmp_path, add={prefix + name: torch.ones(7, 24) if wrong == "shape" else torch.zeros_like(right).to(torch.int8)}
    )
    message = re.escape(name) + (" holds torch.int8; quantised" if wrong == "type" else r" has shape \(7, 24\)")
    if prefix:
        with pytest.raises(ValueError, match=message):
            read_pretrained(tmp_path)
        return
    with pytest.warns(UserWarning, match=f"{message}.*; loading the encoder without its language-model head$"):
        checkpoint = read_pretrained(tmp_path)
    assert checkpoint.head is None
    assert_same_bert(checkpoint, theirs)


def pointer(path: Path) -> None:
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 437955512\n")


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    families.save(tmp_path, "bert")
    pointer(tmp_path / "model.safetensors")
    message = r"^{}/{} is a Git LFS pointer, not the file itself; in its clone run: git lfs pull$"
    with pytest.raises(ValueError, match=message.format(tmp_path, r"model\.safetensors")):
        read_pretrained(tmp_path)
    pointer(tmp_path / "config.json")
    with pytest.raises(ValueError, match=message.format(tmp_path, r"config\.json")):
        read_pretrained(tmp_path)
    families.save(tmp_path, "bert")
    as_sharded_safetensors(tmp_path)
    pointer(tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(ValueError, match=message.format(tmp_path, "model-00002-of-00002.safetensors")):
        read_pretrained(tmp_path)


def test_an_adapter_alone_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "bert-base-uncased"}')
    with pytest.raises(ValueError, match=f"^{tmp_path} holds only an adapter .*merge_and_unload"):
        read_pretrained(tmp_path)
    theirs = families.save(tmp_path, "bert")
    with pytest.warns(UserWarning, match=r"ignoring its adapter \(adapter_config\.json\)"):
        assert_same_bert(read_pretrained(tmp_path), theirs)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"^{tmp_path} holds only an adapter"):
        read_pretrained(tmp_path)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/model.safetensors", "sub/model.safetensors"])
def test_shard_outside_the_folder_is_refused(shard: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    families.save(folder, "bert")
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")  # where ../ points: it could be read
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {LAST_WEIGHT: shard}}))
    with pytest.raises(ValueError, match=f"names {shard!r}, which is not a file of this folder"):
        read_pretrained(folder)


def test_missing_shard_and_broken_index(tmp_path: Path) -> None:
    families.save(tmp_path, "bert")
    as_sharded_safetensors(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks 'model-00002-of-00002\.safetensors"):
        read_pretrained(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json has no weight_map"):
        read_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("damage", [lambda data: data[:-100], lambda data: b"", lambda data: b"not weights at all"])
def test_damaged_weight_file(name: str, damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    families.save(tmp_path, "bert")
    if name == "pytorch_model.bin":
        as_bin(tmp_path)
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))} [^\n]*$"):
        read_pretrained(tmp_path)


@pytest.mark.parametrize("content", [[torch.ones(3)], {"state_dict": {LAST_WEIGHT: torch.ones(3)}}, {1: torch.ones(3)}])
def test_pickle_that_is_no_table_of_weights(content: Any, tmp_path: Path) -> None:
    families.save(tmp_path, "bert")
    (tmp_path / "model.safetensors").unlink()
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="not a dict of named tensors"):
        read_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{broken", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[1]", "holds a JSON list, not a dict"),
    ],
)
def test_broken_config(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"config\.json.*{message}"):
        read_pretrained(tmp_path)
