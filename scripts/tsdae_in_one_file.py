"""TSDAE in one file: the whole method in plain PyTorch with padding, in the order of the paper (section 3).

    python scripts/tsdae_in_one_file.py                                # mini on the sentences of STS-B
    python scripts/tsdae_in_one_file.py --corpus my.txt --steps 500    # a sentence a line

    x~ = noise(x)                               `delete_words`
    s = pool(Encoder(x~))                       `TSDAE.encode`
    h_t = Decoder(x_<t, s)                      `TSDAE.decode`
    p(x_t | x_<t, s) = softmax(E . head(h_t))   `TSDAE.logits`, E = the word-embedding matrix
    J = - sum_t log p(x_t | x_<t, s)            `TSDAE.forward`, per target token

No model, loss or training of the package is used. The package computes the same in less time (it packs instead of
padding, and leaves out what one key makes idle): tests/test_twin.py compares loss, gradients and training steps.

# B sentences, L tokens of the longest one, S tokens attended to, D width, N heads, H head width, V vocabulary
"""

from __future__ import annotations

import argparse
import json
import math
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

Config = dict[str, Any]  # config.json of a BERT
package = find_spec("tsdae")  # where it is, without importing it
MINI = Path(str(package and package.origin)).parent / "hub" / "mini"

# ---- x~ = noise(x) ---------------------------------------------------------------------------------------------------


def delete_words(ids: list[int], words: list[int | None], ratio: float, random: Random) -> list[int]:
    """Delete each word with probability ``ratio``; if none survives, the word with the largest draw stays.

    words: the word that each token belongs to; None for [CLS] and [SEP], which are never deleted.
    """
    draw = {word: random.random() for word in words if word is not None}
    largest = max(draw.values(), default=0.0)
    kept = {word for word in draw if draw[word] >= min(ratio, largest)}
    return [token for token, word in zip(ids, words, strict=True) if word is None or word in kept]


# ---- BERT ------------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(H)) V, with residual and layer norm."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, self.heads = config["hidden_size"], config["num_attention_heads"]
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output, self.norm = nn.Linear(width, width), nn.LayerNorm(width, config["layer_norm_eps"])
        self.dropout = nn.Dropout(config["hidden_dropout_prob"])
        self.weight_dropout = nn.Dropout(config["attention_probs_dropout_prob"])

    def forward(self, hidden_BLD: Tensor, source_BSD: Tensor, may_attend: Tensor) -> Tensor:
        """may_attend: bool, broadcasts to [B, L, S]; True = the token may look at that token of the source."""
        query_BNLH = self.split(self.query(hidden_BLD))
        key_BNSH, value_BNSH = self.split(self.key(source_BSD)), self.split(self.value(source_BSD))
        score_BNLS = query_BNLH @ key_BNSH.mT / math.sqrt(query_BNLH.shape[-1])
        score_BNLS = score_BNLS.masked_fill(~may_attend.unsqueeze(-3), -math.inf)
        context_BNLH = self.weight_dropout(score_BNLS.softmax(dim=-1)) @ value_BNSH
        return self.norm(hidden_BLD + self.dropout(self.output(context_BNLH.transpose(1, 2).flatten(2))))

    def split(self, rows_BLD: Tensor) -> Tensor:
        return rows_BLD.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.expand = nn.Linear(width, config["intermediate_size"])
        self.contract = nn.Linear(config["intermediate_size"], width)
        self.norm = nn.LayerNorm(width, config["layer_norm_eps"])
        self.dropout = nn.Dropout(config["hidden_dropout_prob"])

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        return self.norm(hidden_BLD + self.dropout(self.contract(F.gelu(self.expand(hidden_BLD)))))


class Bert(nn.Module):
    """Embeddings, and an attention and a feed-forward block for each layer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, layers = config["hidden_size"], config["num_hidden_layers"]
        self.words = nn.Embedding(config["vocab_size"], width)
        self.positions = nn.Embedding(config["max_position_embeddings"], width)
        self.token_types = nn.Embedding(config["type_vocab_size"], width)
        self.norm = nn.LayerNorm(width, config["layer_norm_eps"])
        self.dropout = nn.Dropout(config["hidden_dropout_prob"])
        self.attentions = nn.ModuleList(Attention(config) for _ in range(layers))
        self.feed_forwards = nn.ModuleList(FeedForward(config) for _ in range(layers))

    def embed(self, ids_BL: Tensor) -> Tensor:
        positions_LD = self.positions.weight[: ids_BL.shape[1]]
        return self.dropout(self.norm(self.words(ids_BL) + positions_LD + self.token_types.weight[0]))


# ---- TSDAE -----------------------------------------------------------------------------------------------------------


class TSDAE(nn.Module):
    """Encoder and decoder around one vector. Sentences are lists of token ids, [CLS] first and [SEP] last."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder = Bert(config)
        self.decoder = self.encoder  # tied: the very same layers and embeddings
        self.crosses = nn.ModuleList(Attention(config) for _ in self.decoder.attentions)
        width, epsilon = config["hidden_size"], config["layer_norm_eps"]
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, epsilon))
        self.bias = nn.Parameter(torch.zeros(config["vocab_size"]))

    def encode(self, noisy: list[list[int]]) -> Tensor:
        """s = pool(Encoder(x~)): sentence_BD. Every token sees its whole sentence."""
        ids_BL, is_real_BL = padded(noisy)
        hidden_BLD = self.encoder.embed(ids_BL)
        for attention, feed_forward in zip(self.encoder.attentions, self.encoder.feed_forwards, strict=True):
            hidden_BLD = feed_forward(attention(hidden_BLD, hidden_BLD, may_attend=is_real_BL[:, None]))
        return self.pool(hidden_BLD, is_real_BL)

    def pool(self, hidden_BLD: Tensor, is_real_BL: Tensor) -> Tensor:
        return hidden_BLD[:, 0]  # the row of [CLS]

    def decode(self, prefix_BL: Tensor, sentence_BD: Tensor) -> Tensor:
        """h_t = Decoder(x_<t, s): hidden_BLD. Every token sees itself, those before it, and the sentence vector.

        So padding, which comes last, is seen by no token. The cross-attention has one token to attend to, the vector.
        """
        one, length = torch.ones(1, 1, dtype=torch.bool), prefix_BL.shape[1]
        is_earlier_LL = torch.ones(length, length, dtype=torch.bool).tril()
        hidden_BLD = self.decoder.embed(prefix_BL)
        blocks = zip(self.decoder.attentions, self.crosses, self.decoder.feed_forwards, strict=False)
        for attention, cross, feed_forward in blocks:
            hidden_BLD = attention(hidden_BLD, hidden_BLD, may_attend=is_earlier_LL)
            hidden_BLD = feed_forward(cross(hidden_BLD, sentence_BD[:, None], may_attend=one))
        return hidden_BLD

    def logits(self, hidden_BLD: Tensor) -> Tensor:
        """E . head(h_t)"""
        return self.head(hidden_BLD) @ self.decoder.words.weight.T + self.bias

    def forward(self, noisy: list[list[int]], clean: list[list[int]]) -> Tensor:
        """J per target token: the mean over all tokens of the clean sentences but [CLS], which is given."""
        clean_BL, is_real_BL = padded(clean)
        hidden_BLD = self.decode(clean_BL[:, :-1], self.encode(noisy))
        is_target_BL = is_real_BL[:, 1:]
        return F.cross_entropy(self.logits(hidden_BLD)[is_target_BL], clean_BL[:, 1:][is_target_BL])


def padded(sentences: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Return ids_BL, and is_real_BL: True = a token, False = padding."""
    lengths = [len(ids) for ids in sentences]
    ids_BL = torch.tensor([ids + [0] * (max(lengths) - len(ids)) for ids in sentences])
    return ids_BL, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


# ---- training and evaluation -----------------------------------------------------------------------------------------


def step(model: TSDAE, optimizer: torch.optim.Optimizer, noisy: list[list[int]], clean: list[list[int]]) -> float:
    """Return the loss before the step."""
    model.train()  # with dropout
    loss = model(noisy, clean)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
    optimizer.step()
    return loss.item()


def adamw(model: TSDAE, learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.0)


def train(
    model: TSDAE,
    tokenizer: PreTrainedTokenizerFast,
    sentences: list[str],
    steps: int,
    ratio: float = 0.6,
    batch_size: int = 32,
    learning_rate: float = 5e-4,  # for so small a model; the paper, from BERT-base: batches of 8, 3e-5
    seed: int = 0,
) -> list[float]:
    """Return the loss of each step."""
    encoded = tokenizer(sentences, truncation=True)
    clean, words = encoded["input_ids"], [encoded.word_ids(row) for row in range(len(sentences))]
    optimizer, losses = adamw(model, learning_rate), list[float]()
    order: list[tuple[int, int]] = []  # (epoch, row) of the sentences to come
    torch.manual_seed(seed)  # of dropout
    for epoch in range(steps * batch_size // len(sentences) + 1):
        order += [(epoch, row) for row in Random(f"{seed} {epoch}").sample(range(len(sentences)), len(sentences))]
    for start in range(0, steps * batch_size, batch_size):
        batch = order[start : start + batch_size]
        noisy = [delete_words(clean[row], words[row], ratio, Random(f"{seed} {epoch} {row}")) for epoch, row in batch]
        losses.append(step(model, optimizer, noisy, [clean[row] for _, row in batch]))
        if len(losses) % 50 == 0:
            print(f"step {len(losses):>5}: loss {sum(losses[-50:]) / 50:.3f}", flush=True)
    return losses


@torch.no_grad()
def spearman(
    model: TSDAE, tokenizer: PreTrainedTokenizerFast, first: list[str], second: list[str], scores: Any
) -> float:
    """Return 100 x Spearman's correlation of the cosines of pairs of sentences with their scores."""
    model.eval()  # without dropout
    ids = tokenizer([*first, *second], truncation=True)["input_ids"]
    vectors = torch.cat([model.encode(ids[start : start + 64]) for start in range(0, len(ids), 64)])
    return 100 * float(spearmanr(F.cosine_similarity(*vectors.split(len(first))), scores).statistic)


# ---- mini and STS-B --------------------------------------------------------------------------------------------------


THEIRS = {  # our modules -> their names in the weights of a BERT, {}: the layer
    "encoder.words": "bert.embeddings.word_embeddings",
    "encoder.positions": "bert.embeddings.position_embeddings",
    "encoder.token_types": "bert.embeddings.token_type_embeddings",
    "encoder.norm": "bert.embeddings.LayerNorm",
    "encoder.attentions.{}.query": "bert.encoder.layer.{}.attention.self.query",
    "encoder.attentions.{}.key": "bert.encoder.layer.{}.attention.self.key",
    "encoder.attentions.{}.value": "bert.encoder.layer.{}.attention.self.value",
    "encoder.attentions.{}.output": "bert.encoder.layer.{}.attention.output.dense",
    "encoder.attentions.{}.norm": "bert.encoder.layer.{}.attention.output.LayerNorm",
    "encoder.feed_forwards.{}.expand": "bert.encoder.layer.{}.intermediate.dense",
    "encoder.feed_forwards.{}.contract": "bert.encoder.layer.{}.output.dense",
    "encoder.feed_forwards.{}.norm": "bert.encoder.layer.{}.output.LayerNorm",
    "head.0": "cls.predictions.transform.dense",
    "head.2": "cls.predictions.transform.LayerNorm",
}


def load(folder: Path = MINI, seed: int = 0) -> tuple[TSDAE, PreTrainedTokenizerFast]:
    """Return the model of a BERT's folder, and its tokenizer. Only the cross-attention is new and random."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights, model = load_file(folder / "model.safetensors"), TSDAE(config)
    torch.manual_seed(seed)
    for module in model.crosses.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=config["initializer_range"])
            nn.init.zeros_(module.bias)

    for layer in range(config["num_hidden_layers"]):
        for ours, theirs in THEIRS.items():
            module, name = model.get_submodule(ours.format(layer)), theirs.format(layer)
            module.load_state_dict({kind: weights[f"{name}.{kind}"] for kind in module.state_dict()})
    model.bias.data.copy_(weights["cls.predictions.bias"])
    return model, PreTrainedTokenizerFast.from_pretrained(folder)


def stsb() -> tuple[list[str], Any]:
    """Return the sentences of STS-B's train split that are in neither dev nor test, and the pairs of dev."""
    from tsdae.evaluation.pairs import load_stsb  # fetched once, checked and cached

    texts = {split: [*pairs.first, *pairs.second] for split, pairs in load_stsb().items()}
    seen = {*texts["dev"], *texts["test"]}
    return [sentence for sentence in dict.fromkeys(texts["train"]) if sentence not in seen], load_stsb()["dev"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains mini by TSDAE, in one file of plain PyTorch.")
    parser.add_argument("--corpus", type=Path, metavar="FILE", help="a sentence a line; default: STS-B's sentences")
    parser.add_argument("--steps", type=int, default=1000, help="default: 1000")
    parser.add_argument("--noise-ratio", type=float, default=0.6, help="share of the words to delete; default: 0.6")
    options = parser.parse_args()
    (model, tokenizer), (sentences, dev) = load(), stsb()
    if options.corpus:
        sentences = options.corpus.read_text(encoding="utf-8").splitlines()
    before = spearman(model, tokenizer, dev.first, dev.second, dev.scores)
    train(model, tokenizer, sentences, options.steps, options.noise_ratio)
    after = spearman(model, tokenizer, dev.first, dev.second, dev.scores)
    print(f"STS-B dev, Spearman of the [CLS] vectors: {before:.2f} before, {after:.2f} after")


if __name__ == "__main__":
    main()
