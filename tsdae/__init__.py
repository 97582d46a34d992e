"""TSDAE from scratch in plain PyTorch: sentence embeddings from raw text (arXiv 2104.06979)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tsdae.autoencoder import TSDAE as TSDAE
    from tsdae.config import TrainConfig as TrainConfig
    from tsdae.dataset import DenoisingDataset as DenoisingDataset
    from tsdae.encoder import SentenceEncoder as SentenceEncoder
    from tsdae.evaluation.pairs import load_stsb as load_stsb
    from tsdae.evaluation.sts import evaluate_sts as evaluate_sts
    from tsdae.losses import LossSum as LossSum
    from tsdae.packing import Batch as Batch
    from tsdae.text.reading import load_sentences as load_sentences
    from tsdae.training import train as train

__version__ = "0.1.0"
# The public names and where they come from. They are imported when they are first used: PyTorch takes seconds to
# import, and `tsdae --help` does not need it.
_MODULES = {
    "TSDAE": "autoencoder",
    "Batch": "packing",
    "DenoisingDataset": "dataset",
    "LossSum": "losses",
    "SentenceEncoder": "encoder",
    "TrainConfig": "config",
    "evaluate_sts": "evaluation.sts",
    "load_sentences": "text.reading",
    "load_stsb": "evaluation.pairs",
    "train": "training",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"tsdae.{_MODULES[name]}"), name)
    if name in _MODULES.values():  # tsdae.packing and the like, without an import of their own
        return import_module(f"tsdae.{name}")
    raise AttributeError(f"module 'tsdae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
