"""What the decoder of the sample run writes from the sentence vector alone, at the start and after 300 and 1,000 steps.

    python benchmarks/reconstruction.py

Trains the sample run (default flags, seed 0), without its evaluations, in a temporary folder, and writes
benchmarks/reconstruction.md and its picture, reconstruction.svg. The sentences follow from a rule, and were not chosen
by how well they come back.

# S target tokens of one sentence
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.rows import tree_state  # noqa: E402  # the root has to be on the path first
from tsdae import TSDAE, DenoisingDataset, SentenceEncoder, TrainConfig, load_stsb  # noqa: E402
from tsdae.commands.reconstruct import Rebuilt, rebuild  # noqa: E402
from tsdae.commands.train import run_training  # noqa: E402
from tsdae.config import DataConfig, MethodConfig  # noqa: E402
from tsdae.hub.downloads import MINILM  # noqa: E402
from tsdae.utils.device import choose_device, choose_precision, machine_name  # noqa: E402
from tsdae.utils.progress import print_note  # noqa: E402

PAGE = ROOT / "benchmarks" / "reconstruction.md"
STEPS = (0, 300, 1000)
SHOWN = (0, 500, 1000)  # rows of STS-B dev, first sentences
OWN = "My neighbour's grey cat sleeps on the warm roof of our car."
DRAWN = 1  # which of the shown sentences the picture is of
COUNTED = 200  # sentences of STS-B dev, every seventh
LONGEST = 32  # tokens; the untrained decoder never ends
WIDTH, LETTER, LINE = 400, 11, 38  # units of the picture, which is as wide as a phone
DARKEST = 12.0  # nats; a uniform guess among the 30,522 tokens of the vocabulary has a loss of 10.3


# Written by hand, after looking at the page.
SEEN = """
What is seen: the decoder is far from rebuilding sentences. Untrained, it writes words at random and never ends. After
300 steps it has learned what a sentence of this corpus looks like and nothing else: it writes nearly the same one
whatever the vector, and a neighbour's vector serves as well as the sentence's own. At step 1,000 the vector tells it
something, about 0.2 nats per target token, mostly the subject: stocks give a sentence on stocks. The noisy vector is
worth nearly what the clean one is. So nearly all of the loss's fall is the decoder's learning the language of the
corpus, and a low loss alone says little about the vector. What the encoder gains is not told here; the tables of STS-B
are about that.
"""


class Counts(NamedTuple):
    """Of the counted sentences, one noising each.

    loss: nats per target token. kept, deleted: of the different tokens that the noise kept and deleted, the share that
    stands in the reconstruction. whole: how many sentences come back as they were. differing: how many reconstructions
    there are, the same text counted once.
    """

    loss: float
    kept: float
    deleted: float
    whole: int
    differing: int


class Stage(NamedTuple):
    """What one model does. shown: for each sentence the clean one rebuilt, and the noisy one.

    own, other: from each sentence's own vector, and from that of the one before it, which says what the decoder does
    without knowing the sentence.
    """

    step: int
    shown: list[list[Rebuilt]]
    own: Counts
    other: Counts


def main() -> None:
    argparse.ArgumentParser(description="Trains the sample run and writes benchmarks/reconstruction.md.").parse_args()
    dev = load_stsb()["dev"].first
    shown, counted = [dev[row] for row in SHOWN] + [OWN], dev[::7][:COUNTED]
    stages = []
    with tempfile.TemporaryDirectory() as folder:
        for step in STEPS:
            model = model_at(step, Path(folder) / "run")
            print_note(f"step {step:,}: rebuilding sentences")
            stages.append(stage(step, model, shown, counted))
    PAGE.write_text(page(shown, stages), encoding="utf-8")
    PAGE.with_suffix(".svg").write_text(picture(stages), encoding="utf-8")


def model_at(step: int, run: Path) -> TSDAE:
    """The sample run's model after so many steps; what was trained before is gone on with."""
    if step == 0:
        return TSDAE(SentenceEncoder.from_pretrained(MINILM.name, pooling="cls")).eval()
    config = TrainConfig(steps=step, eval_every=0, output=str(run), resume=run.exists())
    return TSDAE.from_pretrained(run_training(DataConfig(), MethodConfig(), config, table=False))


def stage(step: int, model: TSDAE, shown: Sequence[str], counted: Sequence[str]) -> Stage:
    """Under the paper's noise, its seed 0."""
    dataset = DenoisingDataset(shown, model.encoder.tokenizer, max_length=LONGEST)
    rebuilt = [rebuild(model, dataset, row, 1) for row in range(len(shown))]
    return Stage(step, rebuilt, count(model, counted, 0), count(model, counted, 1))


def count(model: TSDAE, sentences: Sequence[str], places: int) -> Counts:
    """places: how far away the sentence stands whose vector is taken."""
    tokenizer = model.encoder.tokenizer
    rows_B = np.arange(len(sentences))
    batch = DenoisingDataset(sentences, tokenizer, max_length=LONGEST).batch(np.zeros_like(rows_B), rows_B)
    with torch.inference_mode():
        sentence_BD = model.encode(batch.noisy).roll(places, 0)
        hidden_TD = model.decode(batch.target, sentence_BD)
        loss = model.token_loss(hidden_TD, batch.target.without_first().token_ids_T).mean().item()
    written = model.reconstruct(sentence_BD, LONGEST)
    special = set(tokenizer.all_special_ids)
    kept = deleted = kept_back = deleted_back = whole = 0
    for noisy, target, text in zip(batch.noisy.sentences(), batch.target.sentences(), written, strict=True):
        here, back = set(noisy) - special, set(tokenizer(text)["input_ids"])
        gone = set(target) - special - here
        kept, kept_back = kept + len(here), kept_back + len(here & back)
        deleted, deleted_back = deleted + len(gone), deleted_back + len(gone & back)
        whole += text == tokenizer.decode(target, skip_special_tokens=True)
    return Counts(loss, kept_back / kept, deleted_back / deleted, whole, len(set(written)))


def page(shown: Sequence[str], stages: Sequence[Stage]) -> str:
    commit, clean = tree_state()
    state = f"commit {(commit or 'unknown')[:7]}" + ("" if clean else " with changes")
    precision = choose_precision("auto", choose_device("auto"))
    lines = [
        "# What the decoder writes",
        "",
        "Made by `python benchmarks/reconstruction.py`: the sample run (all-MiniLM-L6-v2 with CLS pooling on the",
        f"sentences of STS-B train; default flags, seed 0, {precision})",
        f"at steps {', '.join(map('{:,}'.format, STEPS))}; {state}; {machine_name()};",
        f"threads: {torch.get_num_threads()}; PyTorch {torch.__version__}.",
        f"Decoding is greedy, in fp32, at most {LONGEST} tokens. Your own sentences:",
        '`python scripts/reconstruct.py RUN "a sentence"`.',
        "",
        *SEEN.strip().splitlines(),
        "",
        "## Four sentences",
        "",
        f"The sentences {', '.join(map('{:,}'.format, SHOWN))} of STS-B dev and one of our own; none was trained on.",
        "The decoder gets the vector of the noisy sentence (60 % of its words deleted) or of the clean one. The loss,",
        "in nats per target token, is that of the true sentence, the decoder reading the clean prefix.",
        "",
    ]
    for number, sentence in enumerate(shown):
        lines += [f"**{plain(sentence)}** Noisy: {plain(stages[0].shown[number][1].read)}", ""]
        lines += ["| step | vector of the | the decoder writes | loss |", "| --- | --- | --- | --- |"]
        for which, name in ((1, "noisy"), (0, "clean")):
            for done in stages:
                rebuilt = done.shown[number][which]
                lines.append(f"| {done.step:,} | {name} | {cut(rebuilt.written)} | {rebuilt.loss_S.mean():.2f} |")
        lines.append("")
    lines += [
        "## Token by token",
        "",
        "![The loss of each token of one sentence at the three steps](reconstruction.svg)",
        "",
        f"## {COUNTED} sentences",
        "",
        f"Every seventh of STS-B dev, one noisy version each, cut to {LONGEST} tokens; from its own vector, and from",
        "its neighbour's, mostly of the same kind of text. How many of the different tokens that the noise kept, and",
        "of those that it deleted, stand in the reconstruction; how many sentences come back as they were; how many",
        "reconstructions differ from each other.",
        "",
        "| step | vector | loss, nats per target token | kept tokens that come back | deleted ones | whole sentences "
        "| differing |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for done in stages:
        for name, (loss, kept, deleted, whole, differing) in (("its own", done.own), ("its neighbour's", done.other)):
            shares = f"{kept:.1%} | {deleted:.1%} | {whole} | {differing}"
            lines.append(f"| {done.step:,} | {name} | {loss:.2f} | {shares} |")
    return "\n".join([*lines, ""])


def cut(text: str) -> str:
    """What an untrained decoder writes never ends; the beginning shows it."""
    words = text.split()
    return plain(" ".join(words[:8]) + " …" if len(words) > 20 else text)


def plain(text: str) -> str:
    """Text whose signs mean nothing to Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", text)


def picture(stages: Sequence[Stage]) -> str:
    """Each target token of one sentence, coloured by its loss from the noisy sentence's vector, at each step."""
    parts, y = [], 16
    parts.append(label(8, y, f"The encoder reads: {stages[0].shown[DRAWN][1].read}"))
    for done in stages:
        rebuilt = done.shown[DRAWN][1]
        y += 30
        parts.append(label(8, y, f"step {done.step:,}: {rebuilt.loss_S.mean():.2f} nats per token", bold=True))
        x, y = 8.0, y + 8
        for token, loss in zip(rebuilt.tokens, rebuilt.loss_S.tolist(), strict=True):
            width = 0.62 * LETTER * max(len(token), 4) + 8
            if x + width > WIDTH - 8:
                x, y = 8.0, y + LINE
            parts.append(box(x, y, width, LINE - 4, loss))
            for text, below in ((token, 14), (f"{loss:.1f}", 28)):
                parts.append(label(x + width / 2, y + below, text, ink(loss), anchor="middle"))
            x += width + 3
        y += LINE
    y += 26
    parts.append(label(8, y, "loss of each token, in nats:", bold=True))
    for number in range(7):
        loss = DARKEST * number / 6
        parts.append(box(8 + 55 * number, y + 8, 52, 20, loss))
        more = "+" if number == 6 else ""
        parts.append(label(34 + 55 * number, y + 22, f"{loss:g}{more}", ink(loss), anchor="middle"))
    height = y + 36
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
            f'font-family="monospace" font-size="{LETTER}">',
            "<title>The loss of each token of one sentence, before training and on its way</title>",
            f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
            *parts,
            "</svg>",
            "",
        ]
    )


def box(x: float, y: float, width: float, height: float, loss: float) -> str:
    """From white for a token that is known to dark blue for one that is not: one hue, so that it prints in grey too."""
    share = min(loss / DARKEST, 1.0)
    red, green, blue = (round(255 + share * (end - 255)) for end in (8, 48, 107))
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" rx="3" '
        f'fill="#{red:02x}{green:02x}{blue:02x}" stroke="#888"/>'
    )


def ink(loss: float) -> str:
    return "#fff" if loss > DARKEST * 2 / 3 else "#000"  # where both have the same contrast, 4.5 to 1


def label(x: float, y: float, text: str, colour: str = "#000", anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'


if __name__ == "__main__":
    main()
