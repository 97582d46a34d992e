"""Compare the tokenizer that transformers makes of a folder with the folder's own tokenizer.json.

Since version 5 transformers rebuilds many tokenizers by their class, from the vocabulary alone. Where the class is not
the one that wrote tokenizer.json, or is only assumed, most words may become unknown, or single letters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers

from tsdae.text.tokenization import plain_backend

LINES = (
    "The quick brown Fox didn't jump over 12,345 lazy dogs; it slept (well) on www.example.com!",
    "Über den Straßen von Köln fährt der Zug. L'été à Paris, où es-tu ? ¿Dónde está el niño?",
    "Съешь ещё этих мягких французских булок. Η γρήγορη αλεπού. نص عربي قصير. טקסט קצר.",
    "我们今天去图书馆看书。東京大学で犬を見る。나는 학교에 간다. हिन्दी में एक वाक्य।",
)
PIECES_TRIED = 200  # of the vocabulary, in the folder's own language
GIVEN_BY = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


def check_same_ids(folder: Path, tokenizer: Any, settings: Mapping[str, Any], lowercase: bool) -> None:
    """Raise ValueError if the tokenizer gives other ids than tokenizer.json, and the folder's settings ask for neither.

    settings: tokenizer_config.json. lowercase: the text is lowered first (do_lower_case of sentence-transformers).
    """
    from transformers import PreTrainedTokenizerFast

    if type(tokenizer) is PreTrainedTokenizerFast:  # it takes tokenizer.json as it is
        return
    written = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    asked = json.loads(json.dumps(written))
    _ask(asked.get("normalizer"), asked.get("pre_tokenizer"), settings)
    own, as_asked = (_backend(state, lowercase) for state in (written, asked))
    used = plain_backend(tokenizer)
    special = any(own.encode("a").special_tokens_mask)
    for line in [*LINES, *_lines_of(own)]:
        ids = used.encode(line, add_special_tokens=special).ids
        expected = as_asked.encode(line, add_special_tokens=special)
        if ids not in (expected.ids, own.encode(line, add_special_tokens=special).ids):
            found = used.encode(line, add_special_tokens=special).tokens
            differ = [ours != theirs for ours, theirs in zip(found, expected.tokens, strict=False)]
            place = differ.index(True) if True in differ else min(len(found), len(expected.tokens))
            here = slice(max(0, place - 2), place + 4)
            raise ValueError(
                f"{folder}: {type(tokenizer).__name__}, which transformers makes of it, gives other ids than its own "
                f"tokenizer.json ({found[here]} for {expected.tokens[here]} in {line[:60]!r}); if tokenizer.json is "
                'right, write "tokenizer_class": "PreTrainedTokenizerFast" into tokenizer_config.json, else remove it'
            )


def _ask(normalizer: Any, pre_tokenizer: Any, settings: Mapping[str, Any]) -> None:
    """Change the state of a tokenizer.json as tokenizer_config.json asks for."""
    for part in _parts(normalizer, "normalizers"):
        if part["type"] == "BertNormalizer":
            part.update({theirs: settings[name] for name, theirs in GIVEN_BY.items() if name in settings})
    for part in _parts(pre_tokenizer, "pretokenizers"):
        if "add_prefix_space" in settings and part["type"] == "ByteLevel":
            part["add_prefix_space"] = settings["add_prefix_space"]
        if "add_prefix_space" in settings and part["type"] == "Metaspace":
            part["prepend_scheme"] = "always" if settings["add_prefix_space"] else "never"


def _parts(part: Any, name: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    return [inner for one in part[name] for inner in _parts(one, name)] if part["type"] == "Sequence" else [part]


def _backend(state: dict[str, Any], lowercase: bool) -> Tokenizer:
    """Return a tokenizer by its state, without padding and truncation."""
    backend = Tokenizer.from_str(json.dumps(state | {"padding": None, "truncation": None}))
    if lowercase:
        parts = [normalizers.Lowercase(), *([backend.normalizer] if backend.normalizer else [])]
        backend.normalizer = normalizers.Sequence(parts)
    return backend


def _lines_of(own: Tokenizer) -> list[str]:
    """Return lines made of the vocabulary's own pieces."""
    pieces = sorted(own.get_vocab(with_added_tokens=False))
    pieces = [piece.strip("#▁Ġ@") for piece in pieces[:: max(1, len(pieces) // PIECES_TRIED)]]
    words = [piece for piece in pieces if piece.isalpha()]
    return [" ".join(words[start : start + 20]) for start in range(0, len(words), 20)]
