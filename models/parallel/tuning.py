"""Sizes of buckets, chunks and blocks that the training and the memory estimate share.

Both import this module, which needs no torch: the estimate must assume the sizes of training."""

BUCKET_BYTES = 25 << 20
"""Bytes of gradients in one all-reduce (engine/training/gradients.py), as in torch's
DistributedDataParallel: large enough to amortise latency, small enough to overlap."""

CHUNK_BYTES = {"cpu": 32 << 20, "cuda": 1 << 29}
"""Bytes of logits, in the compute type, in one chunk of the loss (models/parallel/loss.py), by
device; also bytes of the head's weight gradient, in float32, that one matmul computes."""

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
