"""What a word is in many languages, and how much of a text deletion deletes: by `--words auto`, and by word ids alone.

    python benchmarks/languages.py FOLDER > benchmarks/languages.md

FOLDER holds text files NAME.txt.gz, a sentence a line (NTREX-128 and Universal Dependencies in the page as it stands).
Where NAME is X.text, and X.segmented.txt.gz has the same lines with their words set apart by spaces, those words are
measured as well, as a segmenter of one's own. For each file three tokenizers are trained on it, as three families of
models have them. Nothing of the text is printed.

# T packed tokens, C characters
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.languages import KINDS, trained  # noqa: E402  # the root has to be on the path first
from tsdae.dataset import DenoisingDataset  # noqa: E402
from tsdae.text.corpus import Corpus  # noqa: E402
from tsdae.text.marks import BEGINS_WORD, INSIDE, SPECIAL  # noqa: E402
from tsdae.text.word_boundaries import END_A_WORD, WITHOUT_SPACES  # noqa: E402
from tsdae.utils.progress import print_note  # noqa: E402

PIECES, RATIO, EPOCHS = 4096, 0.6, 5
OFTEN = 0.02  # of the sentences; what fewer of them have is not named in the table
HEAD = f"""# Words in many languages

    python benchmarks/languages.py FOLDER > benchmarks/languages.md

For each text three tokenizers of {PIECES:,} pieces are trained on it: WordPiece with BERT's normalizer and
pre-tokenizer, Unigram with Metaspace (as in XLM-RoBERTa), byte-level BPE (as in RoBERTa). Of each: the mean length of a
unit of `--words auto` in characters (spaces left out), the share of the characters that `delete` deletes at ratio
{RATIO} in epochs 0 to {EPOCHS - 1}, and the share that it deletes if a word is what the tokenizer's word ids say and
nothing else. Where a sentence is one word, nothing can be deleted of it: at least one word stays. A piece that goes
across a word space (U+1361, the tsheg) is never cut, so units are longer where a tokenizer has many of those.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures what a word is, and what is deleted, in many languages.")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder of text files NAME.txt.gz")
    folder = parser.parse_args().folder
    texts = {path.name.removesuffix(".txt.gz"): path for path in sorted(folder.glob("*.txt.gz"))}
    if not texts:
        parser.error(f"{folder} holds no file NAME.txt.gz")
    columns = [f"{kind}: {what}" for kind in KINDS for what in ("unit", "deleted", "by word ids")]
    print(HEAD)
    print(row("text", "script", "sentences", "auto, beside the tokenizer's own words", *columns))
    print(row(*["---"] * (4 + len(columns))))
    gold = []
    for name, path in texts.items():
        if name.endswith(".segmented"):
            continue
        print_note(name)
        sentences = lines_of(path)
        tokenizers = [trained(kind, sentences, PIECES) for kind in KINDS]
        cells = []
        for tokenizer in tokenizers:
            corpus = Corpus.build(sentences, tokenizer)
            own = dataclasses.replace(corpus, marks=own_marks(corpus, sentences, tokenizer))
            shares = [deleted(made, sentences, tokenizer, RATIO, EPOCHS) for made in (corpus, own)]
            cells += [f"{unit(corpus):.1f}", *map(percent, shares)]
        print(row(name, scripts(sentences), f"{len(sentences):,}", added(corpus), *cells), flush=True)
        segmented = texts.get(name.replace(".text", ".segmented"))
        if name.endswith(".text") and segmented:
            gold.append(row(name, *measured_gold(sentences, lines_of(segmented), tokenizers)))
    if gold:
        print(
            "\nThe same with a segmenter, `--words FILE.py:FUNCTION`, that gives the words as people set them apart:\n"
        )
        columns = [f"{kind}: {what}" for kind in KINDS for what in ("unit", "deleted")]
        print("\n".join([row("text", *columns), row(*["---"] * (1 + len(columns))), *gold]))


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def lines_of(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [line.strip() for line in file if line.strip()]


def scripts(sentences: Sequence[str]) -> str:
    """In which scripts at least a tenth of the letters are written, the most frequent first, by their Unicode names."""
    names = Counter(
        unicodedata.name(letter, "").split(" ")[0] for text in sentences for letter in text if letter.isalpha()
    )
    return ", ".join(
        name if name == "CJK" else name.title() for name, count in names.most_common() if count >= 0.1 * names.total()
    )


def own_marks(corpus: Corpus, sentences: Sequence[str], tokenizer: Any) -> np.ndarray:
    """The marks of a corpus by the tokenizer's word ids alone."""
    marks = []
    for encoding in tokenizer.backend_tokenizer.encode_batch(list(sentences)):
        before = None
        for word in encoding.word_ids:
            marks.append(SPECIAL if word is None else INSIDE if word == before else BEGINS_WORD)
            before = word
    assert len(marks) == len(corpus.marks), "a sentence is left out"
    return np.array(marks, dtype=np.uint8)


def deleted(corpus: Corpus, sentences: Sequence[str], tokenizer: Any, ratio: float, epochs: int) -> float:
    """The share of the characters that deletion deletes, over these epochs."""
    # In place of its id, each token gets its place in the corpus: so the noisy sentences say which tokens are left.
    places = dataclasses.replace(corpus, token_ids=np.arange(len(corpus.token_ids), dtype=np.int32))
    dataset = DenoisingDataset(places, tokenizer, "delete", ratio, max_length=2**30)
    characters_T = characters(sentences, tokenizer)
    rows = np.arange(len(corpus))
    left = [characters_T[dataset.noised(np.full_like(rows, k), rows)[0].token_ids_T].sum() for k in range(epochs)]
    return 1 - float(np.sum(left)) / (epochs * int(characters_T.sum()))


def characters(sentences: Sequence[str], tokenizer: Any) -> np.ndarray:
    """int [T]: how many characters each token has, spaces left out; one of several tokens counts with the first."""
    counts = []
    for sentence, encoding in zip(sentences, tokenizer.backend_tokenizer.encode_batch(list(sentences)), strict=True):
        before_C1 = np.fromiter(accumulate((not letter.isspace() for letter in sentence), initial=0), np.int64)
        start_T, end_T = np.array(encoding.offsets).T
        covered_T = np.maximum.accumulate(np.append(0, end_T[:-1]))
        counts.append(before_C1[np.maximum(end_T, covered_T)] - before_C1[np.maximum(start_T, covered_T)])
    return np.concatenate(counts)


def unit(corpus: Corpus) -> float:
    """Mean length of a word in characters."""
    assert corpus.counts is not None
    return corpus.counts.characters / corpus.counts.words


def added(corpus: Corpus) -> str:
    """What auto does beside the tokenizer's own words, in at least ``OFTEN`` of the sentences."""
    assert corpus.counts is not None
    often = [name for name, count in corpus.counts.met.items() if count > OFTEN * len(corpus)]
    scripts = [name for name in WITHOUT_SPACES if name in often]
    parts = [f"clusters ({', '.join(scripts)})"] if scripts else []
    return "; ".join(parts + [f"ends at the {name}" for name in END_A_WORD if name in often]) or "-"


def measured_gold(sentences: Sequence[str], segmented: Sequence[str], tokenizers: Sequence[Any]) -> list[str]:
    """Cells of the table: with the words of the segmented lines, by the way that a user's segmenter goes."""
    parts = {sentence: parts_of(sentence, line.split()) for sentence, line in zip(sentences, segmented, strict=True)}
    cells = []
    with tempfile.TemporaryDirectory() as folder:
        table, code = Path(folder) / "parts.json", Path(folder) / "gold.py"
        table.write_text(json.dumps(parts), encoding="utf-8")
        code.write_text(
            f"import json\nfrom pathlib import Path\ncut = json.loads(Path({str(table)!r}).read_text()).__getitem__\n"
        )
        for tokenizer in tokenizers:
            corpus = Corpus.build(sentences, tokenizer, words=f"{code}:cut")
            cells += [f"{unit(corpus):.1f}", percent(deleted(corpus, sentences, tokenizer, RATIO, EPOCHS))]
    return cells


def parts_of(sentence: str, words: Sequence[str]) -> list[str]:
    """The sentence cut before each word; white space goes with the word after it."""
    ends = [0]
    for word in words:
        ends.append(sentence.index(word, ends[-1]) + len(word))
    ends[-1] = len(sentence)
    return [sentence[start:end] for start, end in pairwise(ends)]


if __name__ == "__main__":
    main()
