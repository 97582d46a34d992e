"""A bug hunt: ten levels, in each one wrong line in a copy of `tsdae_in_one_file.py`.

    python scripts/bug_hunt.py --level 1                               # writes bug_hunt/level_1.py, shows the symptoms
    python scripts/bug_hunt.py --level 1 --hint
    python scripts/bug_hunt.py --level 1 --answer bug_hunt/level_1.py:53

The bugs are among those that the tests plant in the package (tests/mutant_list.py). Here they are in the one file,
since all of it can be read, changed and run within an hour.
"""

from __future__ import annotations

import contextlib
import io
import runpy
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tsdae.commands.parser import Parser

SOURCE = Path(__file__).resolve().parent / "tsdae_in_one_file.py"
STEPS, BATCH_SIZE, SENTENCES, PAIRS = 60, 16, 400, 500  # 25 steps an epoch; a minute on one core
EXAMPLE = "A man is playing a ukulele at the seaside on a sunny day."


@dataclass(frozen=True)
class Bug:
    """``right`` is in one line of the one file, once, and becomes ``wrong``. mutant: its name in the tests."""

    mutant: str
    right: str
    wrong: str
    hint: str
    explanation: str


BUGS = (
    Bug(
        "keep-for-delete",
        "draw[word] >= min(ratio, largest)",
        "draw[word] < min(ratio, largest)",
        "Count the words of several noisy sentences. What share of them is left?",
        "0.6 is the share that is deleted, and this keeps it; the example of a well-known library does the same. The "
        "loss is lower, since more is told: a lower loss is no proof of a better model.",
    ),
    Bug(
        "decoder-sees-the-source",
        "self.decode(clean_BL[:, :-1]",
        "self.decode(clean_BL[:, 1:]",
        "A loss near zero is too good to be true: from where does the decoder know the next word?",
        "The decoder must read the tokens before the one that it predicts. Here it reads that very token, copies it, "
        "and needs no sentence vector, so that the encoder learns little.",
    ),
    Bug(
        "qkv-in-the-wrong-order",
        '.value": "bert.encoder.layer.{}.attention.self.value"',
        '.value": "bert.encoder.layer.{}.attention.self.key"',
        "It is wrong before the first step. So training is not to blame. What happens before?",
        "The value projection is filled with the key's weights: same shape, so nothing complains. Compare the outputs "
        "of a loaded model with the original's, never only the shapes.",
    ),
    Bug(
        "evaluation-in-train-mode",
        "model.eval()  # without dropout",
        "model.train()  # without dropout",
        "All losses are the same, to the last digit. Which lines can change no loss? Score one model twice.",
        "Dropout stays on while the pairs are scored: every vector is noisy, and every score another. The model is "
        "right and its evaluation wrong, which the identical losses prove.",
    ),
    Bug(
        "copy-instead-of-tie",
        "self.decoder = self.encoder",
        "self.decoder = Bert(config)",
        "The encoder is right before training, and the first loss is wrong. How many parameters has the model?",
        "Tied means the same modules, as in the paper. Here the decoder has weights of its own, and random ones at "
        "that: `load` fills the encoder's only.",
    ),
    Bug(
        "gradients-pile-up",
        "optimizer.zero_grad()",
        "optimizer.zero_grad",
        "The first two losses are right to the last digit, the third is not. What is left over from the first step?",
        "Without its brackets the method is named and not called: to each gradient all earlier ones are added. "
        "Clipping hides how large the sum has become.",
    ),
    Bug(
        "causal-mask-lost",
        "torch.ones(length, length, dtype=torch.bool).tril()",
        "torch.ones(length, length, dtype=torch.bool)",
        "Change the last word of a clean sentence. Which rows of `decode` change with it?",
        "Every token sees those after it, the next one among them. The layers have to learn to look there first, so "
        "the loss goes down over many steps and not at once, as it does where the answer is the input.",
    ),
    Bug(
        "cls-from-the-last-row",
        "return hidden_BLD[:, 0]",
        "return hidden_BLD[:, -1]",
        "Encode a sentence alone, and then beside a longer one. Is it the same vector?",
        "The last row is [SEP] in the longest sentence of a batch and padding in the others: the vector depends on the "
        "sentences beside it. Everything still trains.",
    ),
    Bug(
        "same-noise-each-epoch",
        'Random(f"{seed} {epoch} {row}")',
        'Random(f"{seed} 0 {row}")',
        f"An epoch has {SENTENCES // BATCH_SIZE} steps. Compare the losses before and after its end.",
        "Each sentence loses the same words in every epoch. Nothing differs in the first; later the same pairs come "
        "again and are learnt by heart, where new noise would have made more of few sentences.",
    ),
    Bug(
        "attention-to-the-padding",
        "may_attend=is_real_BL[:, None]",
        "may_attend=is_real_BL[:, :1, None]",
        "The loss of a batch of equally long sentences is right. What have the others in addition?",
        "What is True for [CLS] is so for all: every token attends to the padding too. Little changes and all still "
        "trains, but a vector depends on how long the other sentences of its batch are.",
    ),
)


@dataclass(frozen=True)
class Symptoms:
    noisy: str
    losses: list[float]
    before: float
    after: float


def observe(file: Path, sentences: list[str], pairs: Any, steps: int = STEPS, batch_size: int = BATCH_SIZE) -> Symptoms:
    """Return what a run of this copy of the one file shows. pairs: with first, second and scores."""
    names = runpy.run_path(str(file))
    model, tokenizer = names["load"]()
    sample = tokenizer([EXAMPLE])
    left = names["delete_words"](sample["input_ids"][0], sample.word_ids(0), 0.6, Random(0))
    labelled = list(pairs.first), list(pairs.second), pairs.scores
    before = names["spearman"](model, tokenizer, *labelled)
    with contextlib.redirect_stdout(io.StringIO()):
        losses = names["train"](model, tokenizer, sentences, steps, batch_size=batch_size)
    noisy = tokenizer.decode(left, skip_special_tokens=True)
    return Symptoms(noisy, losses, before, names["spearman"](model, tokenizer, *labelled))


def sheet(right: Symptoms, yours: Symptoms) -> str:
    """Return both side by side: losses as means of five steps, the first three alone."""
    spans = [(0, 1), (1, 2), (2, 3), *((start, start + 5) for start in range(5, len(right.losses), 5))]
    lines = [
        f"a clean sentence     {EXAMPLE}",
        f"  noisy, right       {right.noisy}",
        f"  noisy, this copy   {yours.noisy}",
    ]
    lines += ["", "loss in steps   right   this copy   (# this copy, | right)"]
    scale = 40 / max(*right.losses, *yours.losses)
    for start, end in spans:
        own, other = (sum(each.losses[start:end]) / len(each.losses[start:end]) for each in (right, yours))
        bar = ["#"] * round(other * scale) + [" "] * (41 - round(other * scale))
        bar[round(own * scale)] = "|"
        steps = f"{start + 1}-{end}" if end > start + 1 else f"{end}"
        lines.append(f"{steps:>13} {own:7.3f}     {other:7.3f}   {''.join(bar).rstrip()}")
    lines += ["", "STS-B (Spearman)    right   this copy"]
    lines += [f"before training   {right.before:7.2f}     {yours.before:7.2f}"]
    lines += [f"after             {right.after:7.2f}     {yours.after:7.2f}"]
    return "\n".join(lines)


def line_of(text: str, part: str) -> int:
    """Return the number of the line with ``part``, from 1."""
    return text[: text.index(part)].count("\n") + 1


def main() -> None:
    parser = Parser(
        description="Plants a bug in a copy of tsdae_in_one_file.py, shows its symptoms, checks your answer."
    )
    levels = range(1, len(BUGS) + 1)
    parser.add_argument("--level", type=int, choices=levels, required=True, help="from easy (1) to hard (10)")
    parser.add_argument("--hint", action="store_true", help="where to look")
    parser.add_argument("--answer", metavar="FILE:LINE", help="check this line; exit code 1 if it is another one")
    parser.add_argument("--output", type=Path, metavar="FOLDER", default=Path("bug_hunt"), help="default: bug_hunt")
    (options,) = parser.configs()
    parser.run(lambda: sys.exit(hunt(options.level, options.output, options.hint, options.answer)))


def hunt(level: int, folder: Path, hint: bool, answer: str | None) -> int:
    bug, copy = BUGS[level - 1], folder / f"level_{level}.py"
    planted = SOURCE.read_text(encoding="utf-8").replace(bug.right, bug.wrong)
    if hint:
        print(bug.hint)
        return 0
    if answer is not None:
        return check(bug, answer, copy, planted)
    if copy.exists():
        print(f"{copy} is there already and stays as it is: mend it and see; remove it to begin again")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        copy.write_text(planted, encoding="utf-8")
    print(f"One line of {copy} is wrong. {STEPS} steps of it and of the right one take about a minute.", flush=True)
    from tsdae.evaluation.pairs import Pairs, load_stsb

    dev, train = load_stsb()["dev"], load_stsb()["train"]
    pairs = Pairs(dev.first[:PAIRS], dev.second[:PAIRS], dev.scores[:PAIRS])
    sentences = list(dict.fromkeys(train.first))[:SENTENCES]
    print(sheet(observe(SOURCE, sentences, pairs), observe(copy, sentences, pairs)))
    print(f"\nWhich line? --level {level} --answer {copy}:LINE, or --level {level} --hint")
    return 0


def check(bug: Bug, answer: str, copy: Path, planted: str) -> int:
    """Print the verdict; return 0 for the right line and 1 for another one."""
    name, _, line = answer.rpartition(":")
    if Path(name).name not in (copy.name, SOURCE.name) or not line.isdecimal():
        raise ValueError(f"--answer is {answer!r}; give {copy}:LINE, with the number of a line")
    text = copy.read_text(encoding="utf-8") if copy.exists() else planted
    if text.count(bug.wrong) != 1:  # mended, say
        text = planted
    if int(line) != line_of(text, bug.wrong):
        print(f"No, {answer} is not it.")
        return 1
    print(f"Yes. Right is: {bug.right}")
    print(textwrap.fill(bug.explanation, 100))
    print(f"The tests of the package notice it: python tests/mutants.py {bug.mutant}")
    return 0


if __name__ == "__main__":
    main()
