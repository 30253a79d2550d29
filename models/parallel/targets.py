"""Targets of the loss. No torch, so that data can import it."""

IGNORED = -100
"""Target id that the loss skips, as torch's cross_entropy does by default (``ignore_index``)."""
