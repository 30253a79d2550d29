"""Sizes of buckets, chunks and blocks that the training and the memory estimate share.

Training and estimate both import this module, so that their sizes agree. It needs no torch."""

from models.parallel.shard import round_up

BUCKET_BYTES = 25 << 20
"""Bytes of gradients in one all-reduce (engine/training/gradients.py), as in torch's
DistributedDataParallel: large enough to amortise latency, small enough to overlap."""

ROW_MULTIPLE = {"cpu": 1, "cuda": 128}
"""Rows of a token table on a rank are padded to a multiple of this number, by device: the matmuls
of the head have no fast kernel for GPT-2's 50,257 ids (H200, bf16: 111 to 138 TFLOP/s, 695 to 791
with 50,304; models/parallel/kernels.py)."""

CHUNK_BYTES = {"cpu": 32 << 20, "cuda": 13 << 27}
"""Bytes of logits, in the compute type, in one chunk of the loss (models/parallel/loss.py), by
device; also bytes of the head's weight gradient, in float32, that one matmul computes. On a GPU
64 x 1024 tokens of 50,304 ids in bf16 are four chunks."""


def chunk_bytes(device: str) -> int:
    """Return CHUNK_BYTES for a type of device; a CPU's for a type that is not listed."""
    return CHUNK_BYTES.get(device, CHUNK_BYTES["cpu"])


def chunk_rows(rows: int, row_bytes: int, device: str, multiple: int) -> int:
    """Return the number of rows of x in a chunk of the loss.

    rows: number of all rows; row_bytes: bytes of the logits of one row.

    A chunk has as many rows as fit CHUNK_BYTES. On a device whose matmuls want a ``multiple`` of
    rows, chunks are equal, so that the last one is not small, and rounded up to that multiple.
    """
    most = max(1, chunk_bytes(device) // row_bytes)
    if multiple == 1:
        return most
    equal = -(-rows // -(-rows // most))
    return round_up(equal, multiple)


KEPT_BYTES = 64 << 20
"""Freed blocks up to this size stay with the process for reuse (engine/training/memory.py); a chunk
of the loss is smaller."""

BLOCK_BYTES = 4 << 20
"""Bytes of float32 logits in one softmax on a CPU: they and the result fit the caches (512 tokens
of 50,257 ids: 20 ms, against 37 ms for a whole chunk, 81 ms with its page faults)."""

IN_FLIGHT = 4
"""Sends of a pipeline rank in progress at once (engine/training/pipeline.py); their tensors stay
allocated."""

SMALL_BYTES = 1 << 16
"""Up to this size a direct all-reduce gathers and adds instead of scattering the sum: one exchange
instead of two (models/parallel/collectives.py; 64 KiB at two ranks on loopback: 180 us against
410 us)."""
