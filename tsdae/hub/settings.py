"""What the JSON files of a model folder may hold: a table a file, and one check for all of them.

Folders come from strangers. A value that is no name or number where one belongs, or a size that no model has, ends in
one line that names the file and the key. Keys that are in no table are not read here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tsdae.utils.checks import check_range
from tsdae.utils.files import read_json

Schema = Mapping[str, str]  # {key: kind}; after the kind of a number follows its range, as in "integer [1, 512]"

MODULE: Schema = {"type": "text", "path": "text"}  # of each entry of modules.json
MODES = "cls_token mean_tokens max_tokens mean_sqrt_len_tokens weightedmean_tokens lasttoken".split()
POOLING: Schema = {
    "pooling_mode": "text or texts",
    "include_prompt": "flag",
    **{f"pooling_mode_{mode}": "flag" for mode in MODES},
}
TRANSFORMER: Schema = {"max_seq_length": "integer [3, inf)", "do_lower_case": "flag"}  # sentence_bert_config.json
SENTENCE_TRANSFORMERS: Schema = {"prompts": "table", "default_prompt_name": "text", "similarity_fn_name": "text"}
TOKENIZER: Schema = {
    "tokenizer_class": "text",
    "model_max_length": "number [3, inf]",
    "truncation_side": "text",
    "padding_side": "text",
    "add_prefix_space": "flag",
    **{name: "flag" for name in ("do_lower_case", "strip_accents", "tokenize_chinese_chars")},
}
MODEL: Schema = {"model_type": "text", "architectures": "texts"}  # config.json, whatever the family
SHAPE: Schema = {  # by our names in `BertConfig`; no model comes near the upper ends
    "vocabulary_size": "integer [1, 100000000]",
    "width": "integer [1, 1000000]",
    "layers": "integer [1, 100000]",
    "heads": "integer [1, 1000000]",
    "feed_forward": "integer [1, 10000000]",
    "positions": "integer [3, 100000000]",
    "position_offset": "integer [0, 100000000]",
    "token_types": "integer [1, 1000000]",
    "dropout": "number [0, 1)",
    "attention_dropout": "number [0, 1)",
    "layer_norm_epsilon": "number [0, 1]",
    "initializer_range": "number [0, inf)",
}


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "text": ("text", _is_text),
    "texts": ("a list of texts", _are_texts),
    "text or texts": ("text", lambda value: _is_text(value) or _are_texts(value)),
    "table": ("a table of texts", lambda value: isinstance(value, dict) and all(map(_is_text, value.values()))),
    "flag": ("true or false", lambda value: isinstance(value, bool)),
    "integer": ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "number": ("a number", lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)),
}


def read_settings(path: Path, schema: Schema) -> dict[str, Any]:
    """Return the settings of a JSON file without those that are null; ValueError if ``schema`` does not allow one.

    >>> read_settings(Path("model/sentence_bert_config.json"), TRANSFORMER)
    {'max_seq_length': 256, 'do_lower_case': False}
    """
    return checked(str(path), read_json(path), schema)


def checked(where: str, settings: Any, schema: Schema) -> dict[str, Any]:
    """Return ``settings`` without those that are null; ValueError, which starts with ``where``."""
    if not isinstance(settings, dict):
        raise ValueError(f"{where} must be a table of settings, got {settings!r:.80}")
    given = {key: value for key, value in settings.items() if value is not None}
    for key in schema.keys() & given.keys():
        kind, _, interval = schema[key].partition(" [")
        wanted, fits = KINDS[kind]
        if not fits(given[key]):
            raise ValueError(f"{where}: {key} must be {wanted}, got {given[key]!r:.80}")
        if interval:
            check_range(f"{where}: {key}", given[key], f"[{interval}")
    return given
