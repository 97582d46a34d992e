# %% [markdown]
# # TSDAE: one sentence through every stage
#
# For teaching: run it cell by cell in VS Code or Jupyter, or as a script (`python scripts/walkthrough.py`), which
# writes its pictures into the folder `walkthrough`. It follows section 3 of the paper (Wang, Reimers, Gurevych 2021,
# [arXiv 2104.06979](https://arxiv.org/abs/2104.06979)). The model is `mini`, a small raw BERT in the
# package, and the text a toy language made below: nothing is downloaded. With `--tiny` a random model takes its place.
#
# Axes: B sentences, T tokens of a packed batch, L the longest sentence, D width, N heads, H head width, V vocabulary,
# W words.

# %%
import math
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tsdae import TSDAE, Batch, DenoisingDataset, LossSum, SentenceEncoder, TrainConfig, train
from tsdae.bert import Bert, BertConfig
from tsdae.commands.parser import Parser
from tsdae.evaluation.pairs import Pairs
from tsdae.evaluation.sts import correlations, cosines
from tsdae.noise import Draw, delete
from tsdae.objectives import tsdae
from tsdae.packing import Layout, Packed
from tsdae.text.corpus import Corpus
from tsdae.utils.device import choose_device

NOTEBOOK_FLAGS: list[str] = []  # a notebook has no command line: write ["--tiny"] here
in_notebook = "ipykernel" in sys.modules

parser = Parser(description="Takes one sentence through every stage of TSDAE, with shapes and pictures.")
parser.add_argument("--tiny", action="store_true", help="use a random model and a dozen sentences; takes seconds")
parser.add_argument("--output", metavar="FOLDER", help="folder for pictures; default: walkthrough; notebook: inline")
(options,) = parser.configs(NOTEBOOK_FLAGS if in_notebook else sys.argv[1:])
if not in_notebook:
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))  # Ctrl-C ends it without a traceback
try:
    import matplotlib

    if not in_notebook:
        matplotlib.use("agg")  # files, and no windows that would have to be closed
    from matplotlib import pyplot as plt
    from matplotlib.figure import Figure
except ModuleNotFoundError:
    parser.error('the pictures need matplotlib: python -m pip install -e ".[plots]"')

# Colours that colour-blind people can tell apart (Okabe and Ito 2008); one dark, one light, so that grey print can too.
DARK, LIGHT, PALE = "#0072B2", "#E69F00", "#EEEEEE"
# Figures of 5 inches with letters of 11 points: readable at the width of a phone.
plt.rcParams.update({"font.size": 11, "savefig.dpi": 200, "figure.constrained_layout.use": True})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "hatch.linewidth": 0.6})


def show(figure: Figure, name: str) -> None:
    """Inline in a notebook, unless --output names a folder; else a file."""
    if in_notebook and options.output is None:
        plt.show()
    else:
        path = Path(options.output or "walkthrough") / f"{name}.png"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path)
        except OSError as error:
            parser.error(f"cannot write {path}: {error.strerror}")
        print(f"   picture: {path}")
    plt.close(figure)


# %% [markdown]
# ## 0. A model and sentences
#
# Nothing below depends on which: any BERT and any list of sentences will do. Ours say who does what, where and when, in
# changing order, with synonyms (`man/guy`). So it is known how much alike two of them are: by the parts of the meaning
# that they share. The model never sees these scores.

# %%
SENTENCE = "A man is playing a ukulele at the seaside."
HOW = "young old/elderly happy/cheerful tired small/little big/large"
WHO = "man/guy woman/lady boy girl child/kid dog/puppy cat/kitten cook/chef teacher farmer doctor singer"
DOES = {
    "eats/consumes": "bread apple cake sandwich pizza",
    "cooks/prepares": "soup rice dinner fish",
    "plays": "guitar piano chess football",
    "reads": "book letter newspaper",
    "carries/holds": "bag box ladder umbrella",
    "cleans/washes": "car floor window dishes",
    "watches/observes": "movie bird game train",
    "buys/purchases": "shirt ticket phone flowers",
}
WHERE = "in_the_park on_the_street/on_the_road at_home/in_the_house near_the_sea/on_the_beach at_school at_the_station"
WHEN = "in_the_morning in_the_evening at_night on_sunday every_day/daily after_work"
SHARES = {"how": 0.5, "who": 1.5, "does": 1.5, "what": 1.0, "where": 1.0, "when": 0.5}  # of the meaning


def meaning(random: np.random.Generator) -> dict[str, str]:
    """One of each part, with all its synonyms."""
    parts = {"how": HOW, "who": WHO, "does": " ".join(DOES), "where": WHERE, "when": WHEN}
    drawn = {part: str(random.choice(words.split())) for part, words in parts.items()}
    return drawn | {"what": str(random.choice(DOES[drawn["does"]].split()))}


def said(parts: dict[str, str], random: np.random.Generator) -> str:
    """The meaning as a sentence: one synonym of each part, where and when at either end."""
    word = {part: str(random.choice(words.split("/"))).replace("_", " ") for part, words in parts.items()}
    a, the = random.choice(["a", "the"], 2)
    middle = f"{a} {word['how']} {word['who']} {word['does']} {the} {word['what']}"
    ends = [f"{middle} {word['where']} {word['when']}", f"{word['when']} , {middle} {word['where']}"]
    return f"{random.choice([*ends, word['where'] + ' , ' + middle + ' ' + word['when']])} ."


def made_pairs(count: int, seed: int) -> Pairs:
    """Two sentences that share more or fewer parts of their meaning, and how much of it, from 0 to 5."""
    random = np.random.default_rng(seed)
    first, second, scores = [], [], []
    for _ in range(count):
        one, other = meaning(random), meaning(random)
        taken = random.choice(list(SHARES), random.integers(6), replace=False)
        other |= {part: one[part] for part in taken} | ({"does": one["does"]} if "what" in taken else {})
        if other["does"] == one["does"] and "what" not in taken:
            other["what"] = str(random.choice(DOES[one["does"]].split()))
        first.append(said(one, random))
        second.append(said(other, random))
        scores.append(
            5 * sum(share for part, share in SHARES.items() if one[part] == other[part]) / sum(SHARES.values())
        )
    return Pairs(first, second, np.array(scores))


def tiny_encoder(sentences: list[str]) -> SentenceEncoder:
    """A random BERT of two layers, and a WordPiece tokenizer that knows the words of these sentences."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = dict.fromkeys(" ".join(sentences).lower().replace(".", " .").split())
    words.pop("ukulele")  # not in the vocabulary of BERT either, which has these pieces of it:
    vocabulary = {token: number for number, token in enumerate([*special, *words, "uk", "##ule", "##le"])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer, backend.decoder = normalizers.BertNormalizer(), decoders.WordPiece()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {f"{token[1:-1].lower()}_token": token for token in special}  # pad_token="[PAD]" and so on
    shape = BertConfig(len(vocabulary), width=32, layers=2, heads=4, feed_forward=64, positions=32)
    shape = replace(shape, dropout=0.0, attention_dropout=0.0, initializer_range=0.1)  # learns by heart within seconds
    return SentenceEncoder(Bert(shape), PreTrainedTokenizerFast(tokenizer_object=backend, **names))


try:
    if options.tiny:
        pairs = made_pairs(6, seed=0)
        sentences = heldout = [SENTENCE, *pairs.first, *pairs.second]
        encoder = tiny_encoder(sentences)
        torch.set_num_threads(1)  # on tensors this small threads only wait for each other
    else:
        encoder, pairs = SentenceEncoder.from_pretrained("mini", pooling="cls"), made_pairs(600, seed=0)
        random, known = np.random.default_rng(1), {*pairs.first, *pairs.second}
        made = dict.fromkeys(said(meaning(random), random) for _ in range(8000))
        heldout, sentences = (own := [text for text in made if text not in known])[:64], own[64:]
except (ValueError, OSError) as error:
    parser.error(str(error))
device = choose_device("auto")
model = TSDAE(encoder).to(device).eval()  # eval: no dropout until training
tokenizer, config = encoder.tokenizer, encoder.bert.config
print(f"\n== 0. A model of {config.layers} layers, D = {config.width}, {config.heads} heads, on {device.type}")
print(f"vocabulary V = {config.vocabulary_size:,}; {len(sentences):,} sentences; {len(pairs):,} labelled pairs")

# %% [markdown]
# ## 1. Text becomes tokens
#
# $$x = (x_1, \dots, x_T), \qquad x_1 = \text{[CLS]}, \quad x_T = \text{[SEP]}$$
#
# A word may be several tokens. Noise works on whole words, the loss on tokens. Special tokens belong to no word.

# %%
one = Corpus.build([SENTENCE], tokenizer)
clean, word_T = one.rows(np.array([0]))
tokens = tokenizer.convert_ids_to_tokens(clean.token_ids_T.tolist())
words = [""] * (int(word_T.max()) + 1)
for token, number in zip(tokens, word_T, strict=True):
    if number >= 0:
        words[number] += token.removeprefix("##")
print(f"\n== 1. Text becomes tokens: {SENTENCE!r}")
print(f"{len(words)} words are {len(tokens)} tokens: token_ids_T {list(clean.token_ids_T.shape)}")
print("   t  token          id  word")
for t, (token, number) in enumerate(zip(tokens, word_T, strict=True), start=1):
    word = f"{number}  {words[number]}" if number >= 0 else "-  special: never deleted"
    print(f"  {t:>2}  {token:<10} {clean.token_ids_T[t - 1]:>6}  {word}")

# %% [markdown]
# ## 2. Noise: words are deleted
#
# $$\tilde{x} = \text{noise}(x): \quad \text{delete each word with probability } p = 0.6 \text{, keep one at least}$$
#
# What is deleted is a pure function of (seed, epoch, sentence, word): a sentence loses other words in each epoch, and
# the same words whenever the run is repeated.


# %%
def kept_words(corpus: Corpus, ratio: float, epoch: int) -> np.ndarray:
    """bool [W], True = the word stays. The noise is given the tokens' numbers for ids: it gives back which stay."""
    row_B = np.arange(len(corpus))
    ids, word_T = corpus.rows(row_B)
    numbers = Packed(np.arange(ids.token_count), ids.boundaries, ids.longest)
    draw = Draw(0, np.full(len(row_B), epoch), row_B, ids, word_T)
    stays_T = delete(numbers, word_T, draw, ratio, encoder.vocabulary).token_ids_T
    return np.isin(np.arange(word_T.max() + 1), word_T[stays_T])


corpus = Corpus.build(sentences[:2000], tokenizer)
epochs = range(2 + 2000 // len(corpus))  # a small corpus is noised more often
shares = {p: 1 - np.mean([kept_words(corpus, p, epoch) for epoch in epochs]) for p in (0.1, 0.3, 0.5, 0.6, 0.7, 0.9)}
one_row = np.array([0])
batch = DenoisingDataset(one, tokenizer, noise_ratio=0.6).batch(epoch_B=one_row, row_B=one_row).to(device)
print("\n== 2. Noise: words are deleted")
print(f"clean  {tokenizer.decode(batch.target.token_ids_T)}\nnoisy  {tokenizer.decode(batch.noisy.token_ids_T)}")
print(f"share of words deleted, over {len(corpus):,} sentences and {len(epochs)} epochs, by ratio p:")
print("   " + ", ".join(f"{p} -> {share:.3f}" for p, share in shares.items()))
print("   (less than p where p is high, since one word always stays)")

noisings = [(0.0, 0), (0.3, 0), (0.6, 0), (0.6, 1), (0.6, 2), (0.9, 0)]
half = math.ceil(len(words) / 2)  # two lines of boxes: ten side by side would be too small for a phone
figure, panels = plt.subplots(len(noisings), 1, figsize=(5, 6.6))
for axes, (ratio, epoch) in zip(panels, noisings, strict=True):
    stays_W = kept_words(one, ratio, epoch)
    for number, (word, stays) in enumerate(zip(words, stays_W, strict=True)):
        x, y = number % half, number // half
        axes.barh(y, 0.94, 0.88, left=x, color=DARK if stays else PALE)
        if not stays:
            axes.plot([x, x + 0.94], [y + 0.44, y - 0.44], color=LIGHT, linewidth=1.5)
            axes.plot([x, x + 0.94], [y - 0.44, y + 0.44], color=LIGHT, linewidth=1.5)
        axes.text(x + 0.47, y, word, ha="center", va="center", color="white" if stays else "black", size=10)
    axes.set(xlim=(0, half), ylim=(1.5, -0.5))
    axes.set_title(f"p = {ratio}, epoch {epoch}: {stays_W.sum()} of {len(words)} words stay", loc="left", size=10)
    axes.axis("off")
show(figure, "2-noise")

figure, axes = plt.subplots(figsize=(5, 3.6))
axes.plot([0, 1], [0, 1], color="grey", linewidth=1, label="share = ratio")
axes.plot(list(shares), list(shares.values()), "o", color=DARK, markersize=8, label="measured")
axes.set(xlabel="noise ratio p", ylabel="share of words deleted", xlim=(0, 1), ylim=(0, 1))
axes.legend(frameon=False)
show(figure, "2-share-deleted")

# %% [markdown]
# ## 3. A batch is packed, not padded
#
# $$\text{share of padding} = 1 - \frac{T}{B \cdot L}, \qquad T = \sum_b L_b, \quad L = \max_b L_b$$
#
# All layers but attention work row by row, so sentences are laid end to end, and boundaries say where each one begins.

# %%
ragged = DenoisingDataset(sentences[:8], tokenizer).batch(np.zeros(8, dtype=int), np.arange(8)).target
layout = Layout.of(ragged)
padding_share = 1 - ragged.token_count / (len(ragged) * ragged.longest)
print("\n== 3. A batch is packed, not padded")
print(f"B = {len(ragged)} sentences of {ragged.lengths_B.tolist()} tokens, the longest L = {ragged.longest}")
print(f"packed: token_ids_T {list(ragged.token_ids_T.shape)}, boundaries {ragged.boundaries.tolist()}")
print(f"padded: {list(layout.pad(ragged.token_ids_T).shape)}, {padding_share:.0%} of it padding, which packing saves")

figure, (above, below) = plt.subplots(2, 1, figsize=(5, 5.4), sharex=True, sharey=True)
above.barh(range(len(ragged)), ragged.longest, color="white", edgecolor="grey", hatch="////")
for t, (b, place) in enumerate(zip(layout.sentence_T.tolist(), layout.position_T.tolist(), strict=True)):
    for axes, x, y in ((above, place, b), (below, t % ragged.longest, t // ragged.longest)):
        axes.barh(y, 1, left=x, align="center", color=(DARK, LIGHT)[b % 2], edgecolor="white", linewidth=0.5)
above.set(title=f"padded: {padding_share:.0%} is padding (hatched)", ylabel="sentence b", ylim=(7.6, -0.6))
below.set(title="packed: the same tokens end to end\n(wrapped to fit the page)", xlabel="tokens")
below.tick_params(left=False, labelleft=False)
below.set_xlim(0, ragged.longest)
show(figure, "3-packing")

# %% [markdown]
# ## 4. The encoder makes one vector
#
# $$s = \text{pool}(\text{Encoder}(\tilde{x})) \in \mathbb{R}^D, \qquad \text{pool} = \text{the [CLS] row}$$
#
# However long the sentence, this is all that the decoder will learn of it: the bottleneck.

# %%
with torch.no_grad():
    hidden_TD = encoder.bert(batch.noisy)
    sentence_BD = model.encode(batch.noisy)
    likeness = torch.cosine_similarity(sentence_BD, model.encode(batch.target)).item()
print("\n== 4. The encoder makes one vector")
print(f"{batch.noisy.token_count} noisy tokens -> hidden_TD {list(hidden_TD.shape)} -> s: {list(sentence_BD.shape)}")
print(f"s is the first row of hidden_TD: largest difference {(sentence_BD[0] - hidden_TD[0]).abs().max():.1e}")
print(f"cosine of s with the s of the clean sentence: {likeness:.3f}")

# %% [markdown]
# ## 5. The decoder sees what came before, and s
#
# $$h_t = \text{Decoder}(x_{<t},\, s)$$
#
# Tied: these are *the encoder's own layers*, under a causal mask, with a cross-attention to $s$ added to each. It is no
# cheating that $x_{<t}$ is clean: whatever the beginning of a sentence does not tell must come through $s$.

# %%
prefix, target_T = batch.target.without_last(), batch.target.without_first().token_ids_T
read, wanted = tokens[:-1], tokens[1:]
with torch.no_grad():
    decoded_TD = model.decode(batch.target, sentence_BD)
may_attend_LL = (Layout.of(prefix).causal_bias_LL == 0).tolist()  # row t, column t': True = may attend
print("\n== 5. The decoder sees what came before, and s")
print(f"reads {prefix.token_count} tokens, returns hidden_TD {list(decoded_TD.shape)}: a row for each token to predict")
for t, (may_attend_L, token) in enumerate(zip(may_attend_LL, wanted, strict=True), start=2):
    seen = [earlier for earlier, may_attend in zip(read, may_attend_L, strict=True) if may_attend]
    print(f"  t = {t:<2}  s + {' '.join(seen)}  ->  {token}")

figure, axes = plt.subplots(figsize=(5, 5.2))
axes.barh(range(len(wanted)), 0.9, 0.9, left=-2, color=LIGHT, edgecolor="white", hatch="////")
for t, may_attend_L in enumerate(may_attend_LL):
    axes.barh([t] * len(read), 0.9, 0.9, left=range(len(read)), color=[DARK if may else PALE for may in may_attend_L])
axes.set(ylim=(len(wanted) - 0.5, -0.5), xlabel="what it attends to: always s, and the dark tokens")
axes.set_xticks([-1.55, *(np.arange(len(read)) + 0.45)], ["s", *read], rotation=90)
axes.set_yticks(range(len(wanted)), wanted)
axes.set_ylabel("token to predict")
axes.tick_params(length=0)
show(figure, "5-causal-mask")

# %% [markdown]
# ## 6. What the cross-attention adds
#
# $$\text{softmax}\!\left(\frac{q_t \cdot k}{\sqrt{H}}\right) = 1 \text{ over a single key}
#   \quad\Rightarrow\quad \text{out}_t = W_o (W_v\, s + b_v) + b_o \text{ for every } t$$
#
# Attention to one vector has nothing to choose: query and key do not matter, get no gradient, and the code has none.


# %%
def added_by_cross_attention() -> list[float]:
    """For each layer, the norm of what cross-attention adds, over the mean norm of the rows it is added to."""
    found: list[float] = []

    def listen(cross: Any, inputs: tuple[Tensor, Tensor, Layout], result: Tensor) -> None:
        stream_TD, vector_BD, _ = inputs
        found.append((cross.output(cross.value(vector_BD)).norm() / stream_TD.norm(dim=1).mean()).item())

    hooks = [cross.register_forward_hook(listen) for cross in model.crosses]
    with torch.no_grad():
        model.decode(batch.target, model.encode(batch.noisy))
    for hook in hooks:
        hook.remove()
    return found


def draw_bars(series: dict[str, list[float]], names: list[str], xlabel: str, guess: float | None = None) -> Figure:
    """A group of bars for each name: one bar for each state of training."""
    figure, axes = plt.subplots(figsize=(5, 2 + 0.28 * len(names)))
    height = 0.8 / len(series)
    for number, (label, values) in enumerate(series.items()):
        places = np.arange(len(names)) + (number - (len(series) - 1) / 2) * height
        axes.barh(places, values, height, color=(LIGHT, DARK)[number], edgecolor="black", linewidth=0.5, label=label)
    if guess is not None:
        axes.axvline(guess, color="black", linestyle="--", label=f"a blind guess, ln V = {guess:.1f}")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(xlabel)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return figure


cross: Any = model.crosses[0]
with torch.no_grad():
    query_TNH = torch.randn(len(read), config.heads, config.width // config.heads).to(device)  # whatever they may ask
    key_1NH, value_1NH = torch.randn_like(query_TNH[:1]), cross.value(sentence_BD).view(query_TNH[:1].shape)
    score_NT1 = torch.einsum("tnh,snh->nts", query_TNH, key_1NH) / math.sqrt(key_1NH.shape[-1])
    weight_NT1 = score_NT1.softmax(dim=-1)
    textbook_TD = cross.output(torch.einsum("nts,snh->tnh", weight_NT1, value_1NH).flatten(1))
    short_BD = cross.output(cross.value(sentence_BD))  # once a sentence, as the code does it
added_before = added_by_cross_attention()
LAYERS = [f"layer {layer + 1}" for layer in range(config.layers)]
ADDED = "norm of what s adds / norm of the stream"
print("\n== 6. What the cross-attention adds")
print(f"weights of random queries {list(weight_NT1.shape)}: {weight_NT1.min():.3f} to {weight_NT1.max():.3f}")
print(f"what the tokens then get {list(textbook_TD.shape)}; largest difference")
print(f"   between two tokens: {(textbook_TD - textbook_TD[0]).abs().max():.1e}")
print(f"   from out(value(s)): {(textbook_TD - short_BD).abs().max():.1e}")
print(f"{ADDED}, by layer: " + ", ".join(f"{share:.3f}" for share in added_before))
show(draw_bars({"before training": added_before}, LAYERS, ADDED), "6-cross-attention")

# %% [markdown]
# ## 7. A loss for each token
#
# $$p(x_t \mid x_{<t}, s) = \text{softmax}(E \cdot \text{head}(h_t)), \qquad J = -\sum_t \log p(x_t \mid x_{<t}, s)$$
#
# $E$ is the word-embedding matrix. The loss is kept as a sum and a count, and divided once per optimiser step.
# Does the decoder use $s$? Give it another sentence's: the loss must rise.


# %%
@torch.no_grad()
def token_losses() -> list[float]:
    """- log p of each token of the sentence."""
    return model.token_loss(model.decode(batch.target, model.encode(batch.noisy)), target_T).tolist()


@torch.no_grad()
def own_and_other() -> list[Tensor]:
    """Loss of each token of the held-out sentences, each with its own s, and with the next sentence's."""
    own_BD, clean_T = model.encode(trial.noisy), trial.target.without_first().token_ids_T
    return [model.token_loss(model.decode(trial.target, s_BD), clean_T) for s_BD in (own_BD, own_BD.roll(1, 0))]


BOTTLENECK = "loss per held-out token with its own s: {:.3f}, with another sentence's s: {:.3f}"
rows = np.arange(len(heldout))
trial = DenoisingDataset(heldout, tokenizer, noise_ratio=0.6).batch(np.zeros_like(rows), rows).to(device)
with torch.no_grad():
    logits_TV, loss_mean = model.logits(decoded_TD), model(batch).mean.item()
losses_before, bottleneck_before = token_losses(), [loss_T.mean().item() for loss_T in own_and_other()]
loss_sum, loss_count = sum(losses_before), len(losses_before)
print("\n== 7. A loss for each token")
print(f"logits_TV {list(logits_TV.shape)}; the probabilities of a row sum to {logits_TV[0].softmax(0).sum():.4f}")
print(f"sum {loss_sum:.3f} / count {loss_count} = {loss_sum / loss_count:.4f}; TSDAE(...)(batch).mean {loss_mean:.4f}")
print(BOTTLENECK.format(*bottleneck_before))
print("   No use of s yet: cross-attention and head are new and untrained.")
LOSS, GUESS = "loss, $-\\log p(x_t | x_{<t}, s)$, by token to predict", math.log(config.vocabulary_size)
show(draw_bars({"before training": losses_before}, wanted, LOSS, GUESS), "7-token-loss")

# %% [markdown]
# ## 8. Training a little
#
# $$\theta \leftarrow \text{AdamW}\Big(\theta,\; \nabla_\theta\, \frac{\sum J}{\text{target tokens of the step}}\Big)$$
#
# An objective is a function of the model and a batch. This one is the paper's, and keeps a record. The cell that trains
# on may be run again as often as you like.

# %%
# For stage 9, before the weights change: cosines of all pairs, and vectors of the three least and three most alike.
by_score = np.argsort(pairs.scores, kind="stable")
shown = [int(row) for row in (*by_score[:3], *by_score[-3:])]
shown_sentences = [side[row] for row in shown for side in (pairs.first, pairs.second)]
cosines_before, vectors_before = cosines(encoder.encode, pairs), encoder.encode(shown_sentences)

# %%
recorded: list[float] = []


def recording(model: TSDAE, batch: Batch) -> LossSum:
    loss = tsdae(model, batch)
    recorded.append(loss.mean.item())
    return loss


# For so small a model; the paper, from BERT-base: batches of 8, 3e-5, 10,000 steps and more.
recipe = TrainConfig(steps=200, eval_every=0, batch_size=32, learning_rate=5e-4)
if options.tiny:
    recipe = TrainConfig(steps=120, eval_every=0, learning_rate=3e-3, precision="fp32")


def train_on() -> None:
    """Each time with another order, noise and dropout."""
    seed = len(recorded)
    data = DenoisingDataset(sentences, tokenizer, noise_ratio=0.6, seed=seed)
    train(model, data, replace(recipe, seed=seed), recording)


train_on()

# %%
train_on()

# %%
losses_after, added_after = token_losses(), added_by_cross_attention()
bottleneck_after = [loss_T.mean().item() for loss_T in own_and_other()]
BEFORE, AFTER = "before training", f"after {len(recorded)} steps"
print(f"\n== 8. Training a little: {len(recorded)} steps of {recipe.batch_size} sentences")
print(f"loss per token: {np.mean(recorded[:10]):.2f} in the first ten steps, {np.mean(recorded[-10:]):.2f} in the last")
print(BOTTLENECK.format(*bottleneck_after))

figure, axes = plt.subplots(figsize=(5, 3.6))
axes.plot(np.arange(len(recorded)) + 1, recorded, color=LIGHT, linewidth=1, label="each step")
smooth = np.convolve(recorded, np.ones(10) / 10, mode="valid")
axes.plot(np.arange(len(smooth)) + 5.5, smooth, color=DARK, linewidth=2.5, label="mean of ten steps")
axes.set(xlabel="step", ylabel="loss per target token", ylim=(0, None))
axes.legend(frameon=False)
show(figure, "8-loss")
show(draw_bars({BEFORE: losses_before, AFTER: losses_after}, wanted, LOSS, GUESS), "8-token-loss")
show(draw_bars({BEFORE: added_before, AFTER: added_after}, LAYERS, ADDED), "8-cross-attention")

# %% [markdown]
# ## 9. The embeddings, before and after
#
# $$\rho = \text{Spearman}\big(\cos(s_a, s_b),\ \text{gold score}\big)$$
#
# The decoder is thrown away, and the encoder embeds whole sentences. People have scored how much alike two sentences
# are; good embeddings rank the pairs as they do. The plane shows six pairs along their two main directions (PCA).


# %%
def spearman(cosines_B: np.ndarray) -> float:
    return float(correlations(cosines_B[None], pairs.scores[None])[0][0])


def plane(vectors_BD: np.ndarray) -> np.ndarray:
    """Coordinates along the two directions in which the vectors differ most."""
    centred_BD = vectors_BD - vectors_BD.mean(axis=0)
    return np.asarray(centred_BD @ np.linalg.svd(centred_BD, full_matrices=False)[2][:2].T)


cosines_after, vectors_after = cosines(encoder.encode, pairs), encoder.encode(shown_sentences)
states = ((BEFORE, cosines_before, vectors_before), (AFTER, cosines_after, vectors_after))
print("\n== 9. The embeddings, before and after")
for number, row in enumerate(shown, start=1):
    change = f"{cosines_before[row]:.2f} -> {cosines_after[row]:.2f}"
    print(f"  pair {number}: score {pairs.scores[row]:.1f}, cosine {change}")
    print(f"     {pairs.first[row]}\n     {pairs.second[row]}")
for label, cosines_B, _ in states:
    print(f"Spearman x 100 over {len(pairs):,} pairs, {label}: {spearman(cosines_B):.2f}")
if options.tiny:
    print("A random model and six pairs: these two numbers mean nothing.")
else:
    print("A toy language is easy. On sentences that people wrote: python scripts/train.py")

figure, panels = plt.subplots(2, 1, figsize=(5, 7.6))
for axes, (label, _, vectors_BD) in zip(panels, states, strict=True):
    for number, ends in enumerate(plane(vectors_BD).reshape(len(shown), 2, 2), start=1):
        line, colour, kind = ("o-", DARK, "alike") if number > 3 else ("s--", LIGHT, "unlike")
        name = f"pairs scored {kind}" if number in (1, 4) else None
        axes.plot(*ends.T, line, color=colour, markeredgecolor="black", label=name)
        axes.annotate(str(number), ends[0], xytext=(5, 5), textcoords="offset points")
    axes.set(title=label, xlabel="first direction", ylabel="second direction")
    axes.margins(0.12)
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
show(figure, "9-pairs")

figure, panels = plt.subplots(2, 1, figsize=(5, 7.2), sharex=True, sharey=True)
for axes, (label, cosines_B, _) in zip(panels, states, strict=True):
    axes.scatter(pairs.scores, cosines_B, s=40 if options.tiny else 8, color=DARK, alpha=0.4)
    axes.set(title=f"{label}: Spearman {spearman(cosines_B):.1f}", ylabel="cosine of the pair")
panels[-1].set_xlabel("gold score, 0 (unlike) to 5 (same meaning)")
show(figure, "9-similarity")

# %% [markdown]
# ## 10. What can be rebuilt from one vector?
#
# $$\hat{x}_t = \arg\max_v\; p(v \mid \hat{x}_{<t},\, s)$$
#
# Now the decoder writes alone. It reads its own words and not the clean prefix: all it knows of the sentence is $s$.

# %%
originals = [SENTENCE, *sentences[1:4]]
print("\n== 10. What can be rebuilt from one vector?")
for original, rebuilt in zip(originals, model.reconstruct(originals), strict=True):
    print(f"  {original}\n     -> {rebuilt}")
heart = "It has learnt its dozen sentences by heart."
few = f"{AFTER.capitalize()} it keeps who and what, more or less: that is what the vector now tells."
print(heart if options.tiny else few)

# %% [markdown]
# # Six exercises: predict, then run
#
# Write your guess down before you run the cell; what surprises you is what you learn. The models are those from above,
# trained.
#
# **1.** A sentence of ten words loses each with p = 0.9. How many words are left on average, and how often just one?

# %%
left = [int(kept_words(one, 0.9, epoch).sum()) for epoch in range(1000)]
print(f"\n== Exercise 1: {np.mean(left):.2f} words are left on average; just one in {np.mean(np.equal(left, 1)):.0%}")

# %% [markdown]
# <details><summary>Solution</summary>
#
# 1.35, more than 10 x 0.1: with probability $0.9^{10} = 0.35$ all would go, and then one stays. Just one is left in
# $0.35 + 10 \cdot 0.1 \cdot 0.9^9 = 74$ % of all cases. The shorter a sentence, the less it loses.
# </details>
#
# **2.** The model was trained with 60 % deleted. How does its loss on new sentences change where 0 % go, or 90 %?


# %%
@torch.no_grad()
def heldout_loss(ratio: float) -> float:
    data = DenoisingDataset(heldout, tokenizer, noise_ratio=ratio)
    return model(data.batch(np.zeros_like(rows), rows).to(device)).mean.item()


by_ratio = {ratio: heldout_loss(ratio) for ratio in (0.0, 0.3, 0.6, 0.9)}
print("\n== Exercise 2: loss by ratio: " + ", ".join(f"{ratio} -> {loss:.2f}" for ratio, loss in by_ratio.items()))

# %% [markdown]
# <details><summary>Solution</summary>
#
# It rises with the ratio, also from 0.6 down to 0: the less is deleted, the more the vector can tell. So losses of
# different ratios do not compare, and the ratio with the lowest loss (0, where there is nothing to guess) is not the
# best one for embeddings.
# </details>
#
# **3.** A sentence is encoded alone, and then in one batch with a far longer one. How much does its vector change?

# %%
alone, beside = encoder.encode([SENTENCE]), encoder.encode([SENTENCE, " ".join([sentences[1]] * 2)])
company = float(np.abs(alone[0] - beside[0]).max())
print(f"\n== Exercise 3: the largest change of a number is {company:.0e}, the largest number {np.abs(alone).max():.2f}")

# %% [markdown]
# <details><summary>Solution</summary>
#
# Not at all, but for rounding: attention sees its own sentence only. Where batches are padded, a forgotten mask would
# show here: always try it with a model of your own.
# </details>
#
# **4.** *The dog watches a boy* and *the boy watches a dog* have the same words. Do they have the same vector?

# %%
either = torch.tensor(encoder.encode(["the dog watches a boy .", "the boy watches a dog .", "a chef buys the phone ."]))
same_words, other_words = (torch.cosine_similarity(either[0], either[k], dim=0).item() for k in (1, 2))
print(f"\n== Exercise 4: cosine {same_words:.3f}; with a sentence of other words {other_words:.3f}")

# %% [markdown]
# <details><summary>Solution</summary>
#
# Not the same, since positions are part of the input, but far nearer than sentences of other words. The decoder asks
# the vector mostly *which* words there are; their order it can often guess.
# </details>
#
# **5.** Each sentence gets another one's vector (stage 7). Which tokens suffer more: the first three or the last three?

# %%
own_T, other_T = own_and_other()
rise = [rise_L.tolist() for rise_L in (other_T - own_T).split((trial.target.lengths_B - 1).tolist())]
first_rise, last_rise = np.mean([each[:3] for each in rise]), np.mean([each[-3:] for each in rise])
print(f"\n== Exercise 5: the loss rises by {first_rise:.2f} in the first three tokens, by {last_rise:.2f} in the last")

# %% [markdown]
# <details><summary>Solution</summary>
#
# The first three: at the beginning the prefix tells nothing, and everything must come from the vector. The full stop
# and [SEP] need no vector at all.
# </details>
#
# **6.** Only the [CLS] row was trained to hold the sentence. Does the mean of all rows score worse on stage 9's pairs?

# %%
encoder.pooling = "mean"
spearman_mean = spearman(cosines(encoder.encode, pairs))
encoder.pooling = "cls"
print(f"\n== Exercise 6: Spearman of the mean {spearman_mean:.2f}, of [CLS] {spearman(cosines_after):.2f}")

# %% [markdown]
# <details><summary>Solution</summary>
#
# With mini not: 79 to 78. The loss reached the other rows too, as [CLS] is made from them. Which pooling is best after
# training is a matter of trying; the pooling that is trained with is another question.
# </details>
#
# More: [a bug hunt](README.md#teaching), ten levels in a file that holds the whole method.
