"""Operations of the model that have a fast version beside the plain one.

``plain_*`` functions are what an operation computes, in a few lines of plain PyTorch; all else in these files is speed.
The fast versions run unless `plain` says otherwise:

    with ops.plain():
        loss = model(batch)
"""

from tsdae.ops.attention import attention, one_vector_attention
from tsdae.ops.common import gelu_linear, layout_of, plain
from tsdae.ops.dropout import dropout
from tsdae.ops.word_embedding import WordEmbeddings, cross_entropy, reclaim_gradients

__all__ = [
    "WordEmbeddings",
    "attention",
    "cross_entropy",
    "dropout",
    "gelu_linear",
    "layout_of",
    "one_vector_attention",
    "plain",
    "reclaim_gradients",
]
