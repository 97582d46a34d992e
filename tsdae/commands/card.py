"""The model card of a run: encoder/README.md, which people and the Hugging Face hub read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tsdae.config import HAS_NO_USE_FOR
from tsdae.encoder import SentenceEncoder
from tsdae.evaluation.scores import Scores, bracketed
from tsdae.hub.downloads import MINI
from tsdae.hub.model_folder import model_folder
from tsdae.run.folder import stored_settings, versions
from tsdae.utils.markdown import markdown_table

MEAN = "(hidden * mask).sum(1) / mask.sum(1)"
POOLED = {"cls": "hidden[:, 0]", "mean": MEAN, "max": "hidden.masked_fill(mask == 0, -torch.inf).max(1).values"}
NORMALISED = "\nvectors = torch.nn.functional.normalize(vectors, dim=1)"
TEMPLATE = """
# A sentence encoder trained by {trained_by}

It maps a sentence to a vector of {size} numbers; compare vectors by cosine. Trained without labels by
[tsdae](https://arxiv.org/abs/2104.06979) from {start}.

## Load it

PATH is this folder, or its name on the hub (`hf upload NAME PATH`).

```python
from sentence_transformers import SentenceTransformer

vectors = SentenceTransformer("PATH").encode(["A man plays a guitar.", "Dogs run."])
```

```python
from tsdae import SentenceEncoder

vectors = SentenceEncoder.from_pretrained("PATH").encode(["A man plays a guitar.", "Dogs run."])
```

```python
import torch
from transformers import AutoModel, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained("PATH"), AutoModel.from_pretrained("PATH").eval()
batch = tokenizer(["A man plays a guitar.", "Dogs run."], padding=True, truncation=True, max_length={length},
                  return_tensors="pt")
with torch.no_grad():
    hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][:, :, None]
vectors = {pooled}
```

## Training

{settings}

## Scores

{scores}
"""


def write_card(
    run: Path,
    name: str,
    encoder: SentenceEncoder,
    rows: Sequence[tuple[str, str, Mapping[str, Scores]]],
    log: Sequence[Mapping[str, Any]],
) -> None:
    """Write encoder/README.md of a finished run.

    name: of the model it started from. encoder: what was trained.
    rows: (label, pooling, scores by split), the trained model last; empty without labels.
    log: the evaluations, the first of them before training.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    settings = stored_settings(run)
    on_hub = "/" in name and not Path(name).exists()
    results = [
        EvalResult(
            task_type="sentence-similarity",
            dataset_type=str(settings["evaluate"] or "stsb"),
            dataset_name="STS-B" if settings["evaluate"] in (None, "stsb") else str(settings["evaluate"]),
            dataset_split=split,
            metric_type="spearman_cosine",
            metric_name="Spearman x 100",
            metric_value=round(scores.spearman, 2),
        )
        for split, scores in (rows[-1][2] if rows else {}).items()
        if "spearman" in scores.values
    ]
    data = ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["tsdae", "sentence-transformers", "feature-extraction", "sentence-similarity"],
        license=_licence(name),
        base_model=name if on_hub else None,
        model_name=run.name,
        eval_results=results or None,
    )
    text = TEMPLATE.format(
        trained_by="TSDAE" if settings["objective"] == "tsdae" else f"the objective {settings['objective']}",
        start=f"`{name}`" + (", the raw model that is built into tsdae" if name == MINI else ""),
        pooled=POOLED[encoder.pooling] + (NORMALISED if encoder.normalize else ""),
        settings=markdown_table(("setting", "value"), _settings(settings)),
        scores=_scores(rows, log),
        size=encoder.bert.config.width,
        length=encoder.max_length,
    )
    (run / "encoder" / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n{text}", encoding="utf-8")
    ModelCard.load(run / "encoder" / "README.md")  # fails here, and not on the hub


def _licence(name: str) -> str | None:
    """Return the licence that the card of the start names, if it has one here."""
    from huggingface_hub import ModelCard

    card = model_folder(name) / "README.md"
    if not card.is_file():
        return None
    data = ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
    licence = getattr(data, "license", None)
    return licence if isinstance(licence, str) else None


def _settings(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a reader wants to know of a run, from its config.json."""
    text = settings["corpus"] or "the sentences of STS-B's train split, no labels"
    noise = f"{settings['noise']} {settings['noise_ratio']}"
    sentences = f"{settings['training_sentences']:,}, fingerprint {settings['corpus_fingerprint'][:16]}"
    steps = f"{settings.get('finished', settings['steps']):,} of {settings['sentences_per_step']} sentences"
    rate = f"{settings['learning_rate']:g}, {settings['schedule']}"
    found = ", ".join(f"{package} {version}" for package, version in versions().items())
    rows = [("text", text), ("sentences", sentences)]
    rows += [] if "noise" in HAS_NO_USE_FOR.get(settings["objective"], ()) else [("noise", noise)]
    rows += [("pooling", settings["pooling"]), ("steps", steps), ("learning rate", rate)]
    rows += [("precision", settings["precision"])]
    return [*rows, ("seed", str(settings["seed"])), ("versions", found)]


def _scores(rows: Sequence[tuple[str, str, Mapping[str, Scores]]], log: Sequence[Mapping[str, Any]]) -> str:
    """Return the tables of labelled scores and of metrics without labels, before and after."""
    parts = []
    if rows:
        splits = list(rows[0][2])
        table = [
            (label, *(f"{scores[split].spearman:.2f} {bracketed(scores[split].ci95)}" for split in splits))
            for label, _, scores in rows
        ]
        parts.append("Spearman x 100 [95 % bootstrap interval]:\n\n" + markdown_table(("model", *splits), table))
    if len(log) > 1:
        both = [name for name in log[0] if name in log[-1] and name != "step"]
        metrics = [(name, f"{log[0][name]:.4g}", f"{log[-1][name]:.4g}") for name in both]
        parts.append("At the evaluations of training:\n\n" + markdown_table(("metric", "before", "after"), metrics))
    return "\n\n".join(parts) or "Not evaluated."
