"""Sizes at which work is cut up, in bytes: what runs and what is estimated must agree on them."""

BUCKET_BYTES = 25 << 20
"""Gradients that are summed together. As torch's DistributedDataParallel: large enough to amortise
latency, small enough to overlap."""

CHUNK_BYTES = {"cpu": 32 << 20, "cuda": 1 << 29}
"""Logits, in the compute type, in a chunk of the loss on a device, where the number of tokens is
not given; also, in float32, what of the head's weight gradient is multiplied at once."""

KEPT_BYTES = 64 << 20
"""Blocks up to this size stay with the process when they are freed, for the next to use: above what
a chunk of the loss takes."""

BLOCK_BYTES = 4 << 20
"""float32 logits that a CPU takes the softmax of at once: what its caches hold beside the result
(512 tokens of 50,257 words: 20 against 37 ms for a chunk at once, 81 with its page faults)."""

IN_FLIGHT = 4
"""Sends of a pipeline rank that may be under way at once: their tensors are held meanwhile."""

SMALL_BYTES = 1 << 16
"""Below this an all-reduce gathers and adds at once instead of scattering the sum: one exchange
instead of two (64 KiB at two ranks on loopback: 180 against 410 us)."""
