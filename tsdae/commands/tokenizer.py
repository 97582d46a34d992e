"""Train a tokenizer on a text, by the library `tokenizers`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tsdae.utils.files import first_line

SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
LONGEST_WORD = 500  # characters


def train_tokenizer(read: Callable[[], Iterable[str]], kind: str, vocabulary_size: int, cased: bool = False) -> Any:
    """Train a fast tokenizer with BERT's special tokens on these sentences.

    read: returns the sentences anew at each call; for wordpiece they are read twice.
    kind: "wordpiece" (BERT's: splits at spaces and punctuation) or "unigram" (Kudo 2018; pieces may span what other
    languages would call words, so it suits scripts without spaces).
    cased: keep capitals; without it the text is lowered. Accents stay either way: BERT's uncased tokenizers drop them,
        and with them the vowel signs of Hindi or Thai.
    The same text gives the same wordpiece tokenizer. A unigram one has the same pieces, but the library sums in another
    order at each call, so their scores differ in the third decimal, and with them some ids.
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
        # Given first, as if they were special: the library numbers them in the order of a hash map, whose key differs
        # from process to process, and breaks ties between pieces by these numbers.
        inner = [f"##{letter}" for letter in _letters_inside(read(), backend)]
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocabulary_size, special_tokens=special + inner, show_progress=False
        )
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
        backend.train_from_iterator(read(), trainer)
    except (ValueError, OSError):  # of the text
        raise
    except Exception as error:  # the library has one kind for all; for unigram it is a vocabulary below the letters
        raise ValueError(
            f"cannot train a {kind} tokenizer of {vocabulary_size:,} tokens: {first_line(error)}"
        ) from error
    if backend.get_vocab_size() > vocabulary_size:
        raise ValueError(
            f"--vocabulary-size {vocabulary_size:,} is too small: the characters of the text alone need "
            f"{backend.get_vocab_size():,} tokens"
        )
    if backend.get_vocab_size() < vocabulary_size:
        raise ValueError(
            f"--vocabulary-size {vocabulary_size:,} is too large: the text supports {backend.get_vocab_size():,} tokens"
            "; give a smaller one, or more text"
        )
    if kind == "wordpiece":  # once more, with its true special tokens only
        model = models.WordPiece(backend.get_vocab(), unk_token=SPECIAL["unk"], max_input_chars_per_word=LONGEST_WORD)
        trained, backend = backend, Tokenizer(model)
        backend.normalizer, backend.pre_tokenizer = trained.normalizer, trained.pre_tokenizer
        backend.decoder = trained.decoder
        backend.add_special_tokens(special)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL['cls']} $A {SPECIAL['sep']}",
        special_tokens=[(token, backend.token_to_id(token)) for token in (SPECIAL["cls"], SPECIAL["sep"])],
    )
    names = {f"{name}_token": token for name, token in SPECIAL.items()}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def _letters_inside(sentences: Iterable[str], backend: Any) -> list[str]:
    """Return, sorted, the letters that words have after their first."""
    letters: set[str] = set()
    for sentence in sentences:
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(sentence)):
            letters.update(word[1:])
    return sorted(letters)
