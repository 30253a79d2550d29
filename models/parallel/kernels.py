"""Kernels of a device that the head and its loss use, and the shapes that suit them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from models.parallel.tuning import ROW_MULTIPLE


class LossKernels(Protocol):
    """Computes the softmax of logits [rows, width] and its gradient without a float32 copy.

    The kernels ignore logits from column ``size`` on. columns int64 [rows]: of the targets, -1 for
    none. Other vectors are float32 [rows].
    """

    def row_statistics(self, logits: Tensor, columns: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Return each row's log-sum-exp (-inf if ``size`` is 0) and its target's logit (0 for
        column -1)."""
        ...

    def write_gradient(
        self, logits: Tensor, columns: Tensor, size: int, total: Tensor, factors: Tensor
    ) -> None:
        """Overwrite the logits with (exp(logit - total) - one-hot of the column) x factor; 0 from
        column ``size`` on."""


@dataclass(frozen=True, kw_only=True)
class DeviceKernels:
    """Kernels of a device. The default is a CPU's."""

    row_multiple: int = 1
    """Rows of a token table on a rank, and of x in a chunk of the loss, are padded or rounded to a
    multiple of this number."""
    adds_products: bool = False
    """torch.addmm adds a product of the compute type to sums in the parameter type."""
    loss: LossKernels | None = None
    """None: the loss is computed by torch's operators."""
    failure: str = ""
    """The reason for which a GPU has no kernels of the loss."""

    @property
    def loss_text(self) -> str:
        """The kernels of the loss in words."""
        if self.loss is not None:
            return "Triton's kernels"
        return f"torch's operators ({self.failure})" if self.failure else "torch's operators"

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype, compute: torch.dtype) -> DeviceKernels:
        """Return the kernels of ``device`` for parameters in ``dtype``, found by trying them."""
        multiple = ROW_MULTIPLE.get(device.type, 1)
        if device.type != "cuda":
            return cls(row_multiple=multiple)
        loss, failure = (None, "float64") if compute == torch.float64 else _loss_kernels(device)
        return cls(
            row_multiple=multiple,
            adds_products=_adds_products(device, dtype, compute),
            loss=loss,
            failure=failure,
        )


def add_product(sums: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a @ b to ``sums`` in the type of ``sums``, without a copy of the product."""
    if a.dtype == sums.dtype:
        torch.addmm(sums, a, b, out=sums)
    else:
        torch.addmm(sums, a, b, out_dtype=sums.dtype, out=sums)


@cache
def _adds_products(device: torch.device, dtype: torch.dtype, compute: torch.dtype) -> bool:
    """Return whether ``add_product`` works: not every version of torch accepts such sums."""
    sums = torch.zeros(16, 16, dtype=dtype, device=device)
    ones = torch.ones(16, 16, dtype=compute, device=device)
    try:
        add_product(sums.t(), ones, ones)
    except (RuntimeError, TypeError):
        return False
    return bool((sums == 16).all())


@cache
def _loss_kernels(device: torch.device) -> tuple[LossKernels | None, str]:
    """Return the kernels of triton_loss.py, or None and the reason: triton or the C compiler that
    it needs may be missing."""
    try:
        from models.parallel import triton_loss

        logits = torch.zeros(1, 128, dtype=torch.float32, device=device)
        triton_loss.row_statistics(logits, torch.zeros(1, dtype=torch.int64, device=device), 128)
    except Exception as error:  # triton raises whatever its compilers and drivers raise
        lines = str(error).splitlines()
        return None, f"Triton failed: {lines[0] if lines else type(error).__name__}"
    return triton_loss, ""
