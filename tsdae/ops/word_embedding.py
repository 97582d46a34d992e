"""The word-embedding matrix E, which one step uses three times: looked up for the encoder and for the decoder, and
multiplied for the logits.

Autograd makes a full [V, D] gradient for each use, in fresh memory, and adds them up: three times 47 MB in a small
BERT, and the lookups' are nearly all zeros. On a CPU a third of a step goes there. Here all uses add to one buffer,
which is kept from step to step, and no logits are kept. On other devices and under torch.compile the uses are PyTorch's
own. (The same for every linear layer, used twice, does not pay: measured, see tsdae/README.md.)

# T packed tokens, C tokens of a chunk, D hidden size, V vocabulary
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tsdae.ops.common import at_least_fp32, few_lengths, new_lengths_cost, on_cpu

CHUNK_BYTES = 2**27  # of fp32 logits that exist at a time
CHUNK_TOKENS = 128  # but at least so many tokens': with fewer, E's gradient is read and written too often


class Head(Protocol):
    """A language-model head, of which logits_TV are ``features(hidden_TD) @ E.T + bias``."""

    @property
    def bias(self) -> Tensor: ...

    def features(self, hidden_TD: Tensor) -> Tensor: ...


def cross_entropy(hidden_TD: Tensor, head: Head, words: WordEmbeddings, target_T: Tensor) -> Tensor:
    """Return - log softmax(E . head(h_t)) at target_t, one number per token, at least in fp32: loss_T."""
    count = len(target_T)
    spare = few_lengths(count) - count if new_lengths_cost(hidden_TD.device) else 0
    head_TD = head.features(F.pad(hidden_TD, (0, 0, 0, spare)))
    return words.token_loss(head_TD, head.bias, F.pad(target_T, (0, spare)))[:count]


def plain_token_loss(head_TD: Tensor, weight_VD: Tensor, bias_V: Tensor, target_T: Tensor) -> Tensor:
    """Return the same of head(h_t), with all logits in memory: [T, V], and E as the matrix of the last product."""
    logits_TV = F.linear(head_TD, weight_VD, bias_V)
    return F.cross_entropy(at_least_fp32(logits_TV), target_T, reduction="none")


def reclaim_gradients(module: nn.Module) -> None:
    """Set the gradient of every E in the module to None after an optimiser step, and keep its memory on a CPU."""
    for part in module.modules():
        if isinstance(part, WordEmbeddings):
            part.reclaim_gradient()


class WordEmbeddings(nn.Embedding):
    """E, [V, D]: `forward` looks up rows of it, `token_loss` is the cross-entropy of a softmax over it."""

    def __init__(self, vocabulary_size: int, width: int) -> None:
        super().__init__(vocabulary_size, width)
        self._workspace = _Workspace()

    def forward(self, ids_T: Tensor) -> Tensor:
        """Return rows of E, [T, D]."""
        if not self._collects_gradient():
            return super().forward(ids_T)
        return _Rows.apply(self._workspace.ticket(self.weight), self.weight.detach(), ids_T, self._workspace)

    def token_loss(self, hidden_TD: Tensor, bias_V: Tensor, target_T: Tensor) -> Tensor:
        """Return ``cross_entropy(hidden_TD @ E.T + bias_V, target_T)`` of each token, at least in fp32: loss_T."""
        if not self._collects_gradient():
            return plain_token_loss(hidden_TD, self.weight, bias_V, target_T)
        # A function of our own is not seen by autocast, so its choice is made here.
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else self.weight.dtype
        ticket, weight_VD = self._workspace.ticket(self.weight), self.weight.detach()
        return _TokenLoss.apply(ticket, hidden_TD.to(dtype), weight_VD, bias_V, target_T, self._workspace)

    def reclaim_gradient(self) -> None:
        """Set E's gradient to None, and on a CPU keep its memory for the next one."""
        self._workspace.spare_VD = self.weight.grad if self.weight.device.type == "cpu" else None
        self.weight.grad = None

    def _collects_gradient(self) -> bool:
        """True if all uses of E add to one buffer."""
        return on_cpu(self.weight) and self.weight.requires_grad and torch.is_grad_enabled()


class _Workspace:
    """E's gradient while a backward pass adds to it, and memory that outlives the step.

    In place of E its uses depend on a *ticket*, an empty tensor made from it. Backward comes to the ticket when all
    uses are through; there the gradient is handed to autograd. A ticket serves all uses until that has happened.
    """

    def __init__(self) -> None:
        self.spare_VD: Tensor | None = None
        self.calls = 0  # of `log_probabilities`, each of which overwrites what the one before returned
        self._ticket: Tensor | None = None
        self._made_from: tuple[Tensor, torch.dtype] | None = None
        self._collected_VD: Tensor | None = None
        self._pass = -1  # the backward pass that is adding; what a failed one left behind is dropped
        self._memory: dict[tuple[str, torch.dtype], Tensor] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _Workspace, ()  # a copied or unpickled model starts with an empty one

    def ticket(self, weight_VD: Tensor) -> Tensor:
        """Return the tensor that a use of E depends on in its place."""
        made_from = self._made_from
        if self._ticket is None or not made_from or made_from[0] is not weight_VD or made_from[1] != weight_VD.dtype:
            self._ticket, self._made_from = _Ticket.apply(weight_VD, self), (weight_VD, weight_VD.dtype)
        return self._ticket

    def add_rows(self, weight_VD: Tensor, ids_T: Tensor, grad_TD: Tensor) -> None:
        """Add ``grad_TD`` to the rows ``ids_T`` of the gradient."""
        collected_VD, is_new = self._gradient(weight_VD)
        if is_new:
            collected_VD.zero_()
        collected_VD.index_add_(0, ids_T, grad_TD.to(weight_VD.dtype))

    def add_product(self, weight_VD: Tensor, error_CV: Tensor, hidden_CD: Tensor) -> None:
        """Add ``error_CV.T @ hidden_CD`` to the gradient."""
        collected_VD, is_new = self._gradient(weight_VD)
        if hidden_CD.dtype == weight_VD.dtype:
            torch.addmm(collected_VD, error_CV.t(), hidden_CD, beta=0 if is_new else 1, out=collected_VD)
            return
        product_VD = self.memory("product", weight_VD.shape, hidden_CD.dtype)
        torch.mm(error_CV.t(), hidden_CD, out=product_VD)
        if is_new:
            collected_VD.copy_(product_VD)
        else:
            collected_VD += product_VD

    def hand_over(self) -> Tensor | None:
        """Return the gradient; the ticket is used up."""
        collected_VD, self._collected_VD, self._ticket = self._collected_VD, None, None
        return collected_VD

    def log_probabilities(self, hidden_CD: Tensor, weight_VD: Tensor, bias_V: Tensor) -> Tensor:
        """Return log softmax(E h + b), at least in fp32: [C, V]."""
        self.calls += 1
        dtype = hidden_CD.dtype
        shape, wide = (len(hidden_CD), len(weight_VD)), torch.promote_types(dtype, torch.float32)
        logits_CV = self.memory("logits", shape, dtype)
        torch.addmm(bias_V.to(dtype), hidden_CD, self.cast(weight_VD, dtype).t(), out=logits_CV)
        log_CV = logits_CV if dtype == wide else self.memory("logits", shape, wide).copy_(logits_CV)
        return torch.log_softmax(log_CV, 1, out=log_CV)

    def cast(self, weight_VD: Tensor, dtype: torch.dtype, fresh: bool = False) -> Tensor:
        """Return E in ``dtype``: itself, or a copy that is made anew in each forward pass (``fresh``).

        Until the next one it serves as it is: a fused optimizer changes E without a trace in its version counter, so
        nothing could tell that a copy is out of date.
        """
        if weight_VD.dtype == dtype:
            return weight_VD
        copy_VD = self.memory("E", weight_VD.shape, dtype)
        return copy_VD.copy_(weight_VD) if fresh else copy_VD

    def memory(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a tensor of this shape, which holds whatever it was last used for."""
        kept, size = self._memory.get((name, dtype)), math.prod(shape)
        if kept is None or len(kept) < size:
            kept = self._memory[name, dtype] = torch.empty(size, dtype=dtype)
        return kept[:size].view(shape)

    def _gradient(self, weight_VD: Tensor) -> tuple[Tensor, bool]:
        """Return the gradient collected in this backward pass so far, and True if this is the first use of it."""
        this_pass = torch._C._current_graph_task_id()
        if this_pass == self._pass and self._collected_VD is not None:
            return self._collected_VD, False
        spare_VD, self.spare_VD = self.spare_VD, None
        if spare_VD is None or spare_VD.shape != weight_VD.shape or spare_VD.dtype != weight_VD.dtype:
            spare_VD = torch.empty_like(weight_VD)
        self._pass, self._collected_VD = this_pass, spare_VD
        return spare_VD, True


class _Ticket(torch.autograd.Function):
    """Forward, an empty tensor in place of E; backward, the gradient that was collected meanwhile."""

    @staticmethod
    def forward(ctx: Any, weight_VD: Tensor, workspace: _Workspace) -> Tensor:
        ctx.workspace = workspace
        return weight_VD.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ticket: Tensor) -> tuple[Tensor | None, None]:
        return ctx.workspace.hand_over(), None


class _Rows(torch.autograd.Function):
    """Forward, rows of E; backward, they are added to the collected gradient."""

    @staticmethod
    def forward(ctx: Any, ticket: Tensor, weight_VD: Tensor, ids_T: Tensor, workspace: _Workspace) -> Tensor:
        ctx.workspace = workspace
        ctx.save_for_backward(weight_VD, ids_T)
        return F.embedding(ids_T, weight_VD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:
        weight_VD, ids_T = ctx.saved_tensors
        ctx.workspace.add_rows(weight_VD, ids_T, grad_TD)
        return grad_TD.new_empty(0), None, None, None


class _TokenLoss(torch.autograd.Function):
    """- log softmax(E h_t + b)[target_t] and its gradient, with logits for one chunk of tokens at a time.

    With P the probabilities minus the one-hot targets and g the incoming gradient, d h_t = g_t P_t E, and E's part is
    sum_t P_t (g_t h_t)^T: the factor g goes to the narrow side. The logits of a single chunk wait for the backward
    pass; those of several are computed again there.
    """

    @staticmethod
    def forward(
        ctx: Any,
        ticket: Tensor,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor,
        target_T: Tensor,
        workspace: _Workspace,
    ) -> Tensor:
        ctx.workspace, ctx.tokens = workspace, max(CHUNK_TOKENS, CHUNK_BYTES // (4 * len(weight_VD)))
        ctx.save_for_backward(hidden_TD, weight_VD, bias_V, target_T)
        workspace.cast(weight_VD, hidden_TD.dtype, fresh=True)
        loss = []
        for hidden_CD, target_C in zip(hidden_TD.split(ctx.tokens), target_T.split(ctx.tokens), strict=True):
            log_CV = workspace.log_probabilities(hidden_CD, weight_VD, bias_V)
            loss.append(-log_CV.gather(1, target_C[:, None])[:, 0])
        ctx.call = workspace.calls if len(loss) == 1 else None
        return torch.cat(loss)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor | None, ...]:
        hidden_TD, weight_VD, bias_V, target_T = ctx.saved_tensors
        workspace, dtype = ctx.workspace, hidden_TD.dtype
        grad_hidden_TD, grad_bias_V = torch.empty_like(hidden_TD), torch.zeros_like(bias_V)
        chunks = (tensor.split(ctx.tokens) for tensor in (hidden_TD, target_T, grad_T, grad_hidden_TD))
        for hidden_CD, target_C, grad_C, grad_hidden_CD in zip(*chunks, strict=True):
            if workspace.calls == ctx.call:  # the forward pass's are still there
                log_CV = workspace.memory("logits", (len(hidden_CD), len(bias_V)), grad_T.dtype)
            else:
                log_CV = workspace.log_probabilities(hidden_CD, weight_VD, bias_V)
            workspace.calls += 1  # now they are overwritten
            error_CV = log_CV.exp_()
            error_CV.scatter_add_(1, target_C[:, None], torch.full_like(grad_C, -1.0)[:, None])
            grad_bias_V += (error_CV.t() @ grad_C).to(bias_V.dtype)
            if error_CV.dtype != dtype:
                error_CV = workspace.memory("logits", error_CV.shape, dtype).copy_(error_CV)
            scale_C1 = grad_C[:, None].to(dtype)
            torch.mm(error_CV, workspace.cast(weight_VD, dtype), out=grad_hidden_CD)
            grad_hidden_CD *= scale_C1
            if ctx.needs_input_grad[0]:
                workspace.add_product(weight_VD, error_CV, hidden_CD * scale_C1)
        return grad_T.new_empty(0), grad_hidden_TD, None, grad_bias_V, None, None
