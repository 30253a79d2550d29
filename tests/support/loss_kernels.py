"""The kernels of the loss written with torch's operators, and the head of a GPU on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from models.parallel.kernels import DeviceKernels
from models.parallel.tuning import ROW_MULTIPLE


class TorchLossKernels:
    """Do as models/parallel/triton_loss.py, in the type of the logits or float32, whichever is
    wider."""

    def row_statistics(self, logits: Tensor, columns: Tensor, size: int) -> tuple[Tensor, Tensor]:
        x = logits.to(torch.promote_types(logits.dtype, torch.float32))
        picked = x.gather(1, columns.clamp(min=0).unsqueeze(1)).squeeze(1)
        return x[:, :size].logsumexp(1), picked.where(columns >= 0, 0)

    def write_gradient(
        self, logits: Tensor, columns: Tensor, size: int, total: Tensor, factors: Tensor
    ) -> None:
        target = torch.arange(logits.shape[1], device=logits.device) == columns.unsqueeze(1)
        p = (logits.to(total.dtype) - total.unsqueeze(1)).exp()
        logits.copy_((p - target.to(p.dtype)) * factors.unsqueeze(1).to(p.dtype))
        logits[:, size:] = 0


LIKE_A_GPU = DeviceKernels(
    row_multiple=ROW_MULTIPLE["cuda"], adds_products=True, loss=TorchLossKernels()
)
"""The head of a GPU: padded tables, equal chunks, gradients of the table in its own order."""
