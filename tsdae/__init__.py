"""TSDAE from scratch in plain PyTorch: sentence embeddings from raw text (arXiv 2104.06979)."""

from tsdae.autoencoder import TSDAE
from tsdae.config import TrainConfig
from tsdae.dataset import DenoisingDataset
from tsdae.encoder import SentenceEncoder
from tsdae.evaluation.pairs import load_stsb
from tsdae.evaluation.sts import evaluate_sts
from tsdae.losses import LossSum
from tsdae.packing import Batch
from tsdae.text.reading import load_sentences
from tsdae.training import train

__version__ = "0.1.0"
__all__ = [
    "TSDAE",
    "Batch",
    "DenoisingDataset",
    "LossSum",
    "SentenceEncoder",
    "TrainConfig",
    "evaluate_sts",
    "load_sentences",
    "load_stsb",
    "train",
]
