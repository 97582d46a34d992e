"""The bugs that `mutants` plants: each is one line that somebody could write, and the tests that must notice it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """``old`` stands exactly once in ``file`` and becomes ``new``; ``tests`` are arguments for pytest."""

    name: str
    file: str
    old: str
    new: str
    tests: str


NOISE, DATASET, TRAINING = "tests/test_noise.py", "tests/test_dataset.py", "tests/test_training.py"
TWIN, PARITY, DROPOUT = "tests/test_twin.py", "tests/test_bert_parity.py", "tests/test_dropout.py"
ENCODER, CORPUS, COMMANDS = "tests/test_encoder.py", "tests/test_corpus.py", "tests/test_commands.py"
INVARIANCES, BOTTLENECK = "tests/test_invariances.py", "tests/test_bottleneck.py"
OBJECTIVES, PACKING = "tests/test_objectives.py", "tests/test_packing.py"
OPTIMISATION, TIED = "tests/test_optimisation.py", "tests/test_tied.py"
EVALUATION, RECIPE = "tests/test_evaluation.py", "tests/test_recipe.py"

MUTANTS = (
    # noise
    Mutant("keep-for-delete", "tsdae/noise.py", "keep_W = draw_W >= ratio", "keep_W = draw_W < ratio", NOISE),
    Mutant(
        "survivor-not-uniform", "tsdae/noise.py", "np.maximum.at(largest_B", "np.minimum.at(largest_B", NOISE
    ),
    Mutant("empty-sentences", "tsdae/noise.py", "keep_W |= (survivors_B == 0)", "keep_W |= (survivors_B < 0)", NOISE),
    Mutant("words-torn-apart", "tsdae/noise.py", "keep_T = ~of_words(~keep_W, word_T)",
           "keep_T = (draw.tokens() >= ratio) | (word_T < 0)", NOISE),
    Mutant("specials-deleted", "tsdae/noise.py", "return np.append(chosen_W, False)[word_T]",
           "return np.append(chosen_W, True)[word_T]", NOISE),
    Mutant("same-noise-each-epoch", "tsdae/noise.py", "keyed(seed, epoch_B, row_B)", "keyed(seed, 0, row_B)",
           NOISE),
    Mutant("same-noise-for-every-seed", "tsdae/noise.py", "keyed(seed, epoch_B, row_B)", "keyed(0, epoch_B, row_B)",
           NOISE),
    Mutant("noise-from-global-state", "tsdae/noise.py",
           "return _uniform(keyed(self._sentence_key_B[self.sentence_W], 2 * stream, self._place_W))",
           "return np.random.rand(len(self._place_W))  # noqa: NPY002", NOISE),
    Mutant("streams-not-independent", "tsdae/noise.py", "2 * stream, self._place_W", "0 * stream, self._place_W", NOISE),
    Mutant("mask-for-keep", "tsdae/noise.py",
           "    chosen_T = of_words(draw.words() < ratio, word_T)\n    return Packed(np.where(chosen_T, vocabulary.mask_id",
           "    chosen_T = of_words(draw.words() >= ratio, word_T)\n    return Packed(np.where(chosen_T, vocabulary.mask_id",
           NOISE),
    Mutant("swap-across-sentences", "tsdae/noise.py",
           "np.lexsort((draw.words(1)[chosen_W], draw.sentence_W[chosen_W]))", "np.argsort(draw.words(1)[chosen_W])", NOISE),
    Mutant("insert-before-the-word", "tsdae/noise.py", "last_T = np.diff(word_T, append=-1) != 0",
           "last_T = np.diff(word_T, prepend=-1) != 0", NOISE),
    # dataset, tokenization
    Mutant("noise-follows-the-batch", "tsdae/dataset.py", "draw = Draw(self.seed, epoch_B, row_B, clean, word_T)",
           "draw = Draw(self.seed, epoch_B, np.arange(len(row_B)), clean, word_T)", NOISE),
    Mutant("noisy-not-truncated", "tsdae/dataset.py", "return truncate(noisy, self.max_length, tail),",
           "return noisy,", DATASET),
    Mutant("same-order-each-epoch", "tsdae/dataset.py", "keyed(self.seed, ORDER, epoch_B)",
           "keyed(self.seed, ORDER, 0 * epoch_B)", DATASET),
    Mutant("order-restarts-with-the-batch", "tsdae/dataset.py", "np.arange(position, position + count)",
           "np.arange(count)", DATASET),
    Mutant("target-is-noisy", "tsdae/dataset.py", "truncate(clean, self.max_length, tail)",
           "truncate(noisy, self.max_length, tail)", DATASET),
    Mutant("truncation-loses-sep", "tsdae/tokenization.py", "rows_T[new_ends - back] = old_ends - back",
           "rows_T[new_ends - back] += 0", DATASET),
    # corpus, preparation
    Mutant("words-run-on-into-the-next-sentence", "tsdae/tokenization.py", "begins_T[tokens.boundaries[:-1]] = True",
           "begins_T[:1] = True", CORPUS),
    Mutant("tokenizers-told-apart-by-size", "tsdae/tokenization.py", "_plain_backend(tokenizer).to_str()",
           "str(len(tokenizer))", CORPUS),
    Mutant("another-tokenizers-ids", "tsdae/dataset.py", "        self.corpus.check_tokenizer(tokenizer)\n", "", CORPUS),
    Mutant("half-a-corpus-left-behind", "tsdae/corpus.py", "for left in (staged, replaced):", "for left in (replaced,):",
           CORPUS),
    Mutant("a-row-lost-at-each-seam", "tsdae/corpus.py", "self.boundaries[start : start + STRETCH + 1]",
           "self.boundaries[start : start + STRETCH]", CORPUS),
    Mutant("held-out-loss-of-the-training-sentences", "tsdae/preparation.py",
           "heldout = Corpus.open(Path(folder) / HELDOUT) if held_out else None",
           "heldout = Corpus.open(folder) if held_out else None", COMMANDS),
    # packing
    Mutant("labels-not-shifted", "tsdae/packing.py", "return self._drop_one_token(first_kept=1)",
           "return self._drop_one_token(first_kept=0)", BOTTLENECK),
    Mutant("padding-attended", "tsdae/packing.py", "device=self.boundaries.device) < self.lengths_B[:, None]",
           "device=self.boundaries.device) <= self.lengths_B[:, None]", PACKING),
    # bert
    Mutant("tanh-gelu", "tsdae/bert.py", "self.contract(F.gelu(wide_TF))",
           'self.contract(F.gelu(wide_TF, approximate="tanh"))', TWIN),
    Mutant("head-tanh-gelu", "tsdae/bert.py", "F.gelu(self.transform(hidden_TD))",
           'F.gelu(self.transform(hidden_TD), approximate="tanh")', TWIN),
    Mutant("layer-norm-epsilon", "tsdae/bert.py", "layer_norm_epsilon: float = 1e-12", "layer_norm_epsilon: float = 1e-5",
           PARITY),
    Mutant("head-bias-dropped", "tsdae/bert.py", "embedding_VD, self.bias)", "embedding_VD)", TIED),
    Mutant("token-type-forgotten", "tsdae/bert.py", "hidden_TD = hidden_TD + self.token_types.weight[0]",
           "hidden_TD = hidden_TD + 0 * self.token_types.weight[0]", TWIN),
    Mutant("position-offset-forgotten", "tsdae/bert.py", "layout.position_T + self.position_offset",
           "layout.position_T", PARITY),
    Mutant("causal-mask-lost", "tsdae/bert.py", "dropout_p=dropout, is_causal=causal",
           "dropout_p=dropout, is_causal=False", BOTTLENECK),
    Mutant("encoder-is-causal", "tsdae/bert.py", "hidden_TD = layer(hidden_TD, layout)\n",
           "hidden_TD = layer(hidden_TD, layout, causal=True)\n", TWIN),
    Mutant("cross-attention-residual-lost", "tsdae/bert.py", "return self.norm(hidden_TD + self.dropout(out_TD, layout.masks))",
           "return self.norm(self.dropout(out_TD, layout.masks))", TWIN),
    Mutant("cross-attention-after-the-feed-forward", "tsdae/bert.py",
           "            hidden_TD = cross(hidden_TD, sentence_BD, layout)\n        return self.feed_forward(hidden_TD, layout)",
           "            return cross(self.feed_forward(hidden_TD, layout), sentence_BD, layout)\n        return self.feed_forward(hidden_TD, layout)",
           TWIN),
    Mutant("heads-mixed-up", "tsdae/packing.py", "(token_BL[:, None] * parts + part_P111) * heads + head_N1",
           "(token_BL[:, None] * heads + head_N1) * parts + part_P111", TWIN),
    Mutant("padding-takes-a-gradient", "tsdae/packing.py", "rows.packed_R, rows.padded_R, rows.is_token_padded_R1",
           "rows.packed_R, rows.padded_R, None", PACKING),
    Mutant("rows-that-are-no-tokens-take-a-gradient", "tsdae/packing.py",
           "rows.is_token_packed_R1 if self.rows > self.token_count else None", "None", PACKING),
    Mutant("first-token-without-its-residual", "tsdae/bert.py", "return self.norm(first_BD + self.dropout(",
           "return self.norm(query_BNH.flatten(1) + self.dropout(", TWIN),
    Mutant("every-mask-the-same", "tsdae/dropout.py", "drawn, self._left[kind] = self._left[kind].tensor_split([count])",
           "drawn, _ = self._left[kind].tensor_split([count])", DROPOUT),
    Mutant("another-mask-in-the-backward-pass", "tsdae/dropout.py", "*arguments, use_reentrant=False)",
           "*arguments, use_reentrant=False, preserve_rng_state=False)", DROPOUT),
    Mutant("nothing-is-computed-again", "tsdae/dropout.py", "largest < LARGE_BYTES", "largest < 2**62", DROPOUT),
    Mutant("cross-dropout-per-sentence", "tsdae/bert.py",
           "kept_BLN = layout.pad(layout.masks.mask(ones_TN, self.attention_dropout))",
           "kept_BLN = layout.pad(layout.masks.mask(ones_TN[:1], self.attention_dropout).expand_as(ones_TN))", DROPOUT),
    Mutant("cross-attention-dropout-lost", "tsdae/bert.py",
           "kept_BLN = layout.pad(layout.masks.mask(ones_TN, self.attention_dropout))", "kept_BLN = layout.pad(ones_TN)", DROPOUT),
    Mutant("attention-dropout-in-evaluation", "tsdae/bert.py",
           "dropout = self.attention_dropout if self.training else 0.0", "dropout = self.attention_dropout",
           ENCODER),
    # checkpoints, folders
    Mutant("qkv-in-the-wrong-order", "tsdae/checkpoints.py",
           '("attention.self.query", "attention.self.key", "attention.self.value")',
           '("attention.self.key", "attention.self.query", "attention.self.value")', PARITY),
    Mutant("no-roberta-offset", "tsdae/checkpoints.py", "offset_positions=True", "offset_positions=False", PARITY),
    # autoencoder, encoder
    Mutant("cls-from-the-last-row", "tsdae/packing.py", "index_select(0, self.boundaries[:-1])",
           "index_select(0, self.boundaries[1:] - 1)", ENCODER),
    Mutant("advanced-indexing-of-the-sentence-row", "tsdae/packing.py",
           "rows_TX.index_select(0, self.boundaries[:-1])", "rows_TX[self.boundaries[:-1]]", INVARIANCES),
    Mutant("query-and-key-biases-not-loaded", "tsdae/checkpoints.py",
           "torch.cat([_weight(theirs, name, part_shape, folder) for name in group])",
           "torch.cat([_weight(theirs, name, part_shape, folder) * (len(part_shape) > 1) for name in group])", PARITY),
    Mutant("mean-over-the-padding", "tsdae/encoder.py", "hidden_BLD.sum(1) / layout.lengths_B[:, None]",
           "hidden_BLD.mean(1)", ENCODER),
    Mutant("order-of-encode", "tsdae/encoder.py", "vectors[rows_B] =", "vectors[start : start + batch_size] =", ENCODER),
    Mutant("copy-instead-of-tie", "tsdae/autoencoder.py", "        if not tie:\n", "        if True:\n",
           INVARIANCES),
    Mutant("decoder-sees-the-source", "tsdae/autoencoder.py", "prefix = target.without_last()",
           "prefix = target.without_first()", BOTTLENECK),
    Mutant("decoder-without-causal-mask", "tsdae/autoencoder.py", "causal=True, cross=cross", "causal=False, cross=cross",
           BOTTLENECK),
    Mutant("wrong-depth-of-the-decoder", "tsdae/autoencoder.py", "for _ in range(self.decoder_layers))",
           "for _ in range(config.layers))", INVARIANCES),
    Mutant("head-of-the-checkpoint-ignored", "tsdae/encoder.py", "if self.checkpoint.head is not None:", "if False:",
           ENCODER),
    # objectives, training
    Mutant("mean-of-means", "tsdae/training.py", "loss_sum.share_of(counts or loss_sum.counts)",
           "loss_sum.share_of(loss_sum.counts)", TRAINING),
    Mutant("weight-of-a-term-lost", "tsdae/objectives.py", "weight=factor * term.weight", "weight=term.weight",
           OBJECTIVES),
    Mutant("gradients-pile-up", "tsdae/training.py", "            optimizer.zero_grad()\n", "", TRAINING),
    Mutant("clipping-lost", "tsdae/optimisation.py", "    elif largest_norm:\n", "    elif False:\n", OPTIMISATION),
    Mutant("schedule-never-set", "tsdae/training.py", 'group["lr"] = config.learning_rate_at(step, steps)',
           'group["lr"] = config.learning_rate', TRAINING),
    Mutant("weight-decay-everywhere", "tsdae/optimisation.py", '"params": vectors, "weight_decay": 0.0',
           '"params": vectors, "weight_decay": weight_decay', TRAINING),
    Mutant("nan-reaches-the-weights", "tsdae/training.py", "(~torch.isfinite(norm + step_loss)).float()",
           "torch.zeros(())", TRAINING),
    Mutant("evaluation-in-train-mode", "tsdae/training.py", "    model.eval()\n", "    model.train()\n", TRAINING),
    Mutant("training-in-evaluation-mode", "tsdae/training.py",
           "                window.restart_clock()\n                modules.train()\n",
           "                window.restart_clock()\n", TRAINING),
    Mutant("evaluation-moves-the-random-state", "tsdae/training.py",
           'with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):',
           "with contextlib.nullcontext():", TRAINING),
    Mutant("the-same-batches-again", "tsdae/dataset.py", "            position += at_once\n", "", DATASET),
    Mutant("higher-loss-is-better", "tsdae/training.py", 'value < best if name.endswith("loss") else value > best',
           "value > best", TRAINING),
    # the fast path: E's one gradient, few lengths, masks
    Mutant("clip-by-too-much", "tsdae/optimisation.py", ".clamp(min=1.0)", "", OPTIMISATION),
    Mutant("second-lookup-forgets-the-first", "tsdae/tied.py", "        if is_new:\n            collected_VD.zero_()\n",
           "        collected_VD.zero_()\n", TIED),
    Mutant("later-chunks-forget-the-first", "tsdae/tied.py", "beta=0 if is_new else 1", "beta=0", TIED),
    Mutant("overwritten-logits-are-used", "tsdae/tied.py", "if workspace.calls == ctx.call:", "if ctx.call:", TIED),
    Mutant("a-failed-pass-leaves-its-gradient", "tsdae/tied.py", "if this_pass == self._pass and self._collected_VD",
           "if self._collected_VD", TIED),
    Mutant("weights-of-tokens-lost", "tsdae/tied.py", "hidden_CD * scale_C1)", "hidden_CD)", TIED),
    Mutant("stale-bfloat16-copy", "tsdae/tied.py", "copy_VD.copy_(weight_VD) if fresh else copy_VD",
           "copy_VD.copy_(weight_VD) if fresh and not self.calls else copy_VD", TIED),
    Mutant("rows-that-are-no-tokens-in-the-loss", "tsdae/autoencoder.py", "F.pad(target_T, (0, added)))[:count]",
           "F.pad(target_T, (0, added)))", PACKING),
    Mutant("mask-without-scale", "tsdae/dropout.py", ".mul_(2**16 / (2**16 - dropped))", "", DROPOUT),
    Mutant("attention-to-the-padding", "tsdae/bert.py", "layout.padding_bias_BL.repeat_interleave(self.heads, 0)[:, None]",
           "0 * layout.real_BL.float().repeat_interleave(self.heads, 0)[:, None]", PACKING),
    # evaluation, recipe
    Mutant("pearson-for-spearman", "tsdae/evaluation.py",
           "spearman_S = _pearson(rankdata(x_SB, axis=1), rankdata(y_SB, axis=1))", "spearman_S = pearson_S", EVALUATION),
    Mutant("dot-for-cosine", "tsdae/evaluation.py", "norms = np.linalg.norm(vectors, axis=1, keepdims=True)",
           "norms = np.ones((len(vectors), 1))", EVALUATION),
    Mutant("trains-on-the-held-out", "tsdae/preparation.py", "if sentence not in kept_apart]", "]", RECIPE),
    Mutant("test-sentences-in-the-sample", "tsdae/recipe.py", 'for split in ("dev", "test") for sentence in',
           'for split in ("dev",) for sentence in', RECIPE),
)  # fmt: skip
