"""The error for a file that contains no images."""

from __future__ import annotations


class NotImagesError(Exception):
    """A file contains no images. The message continues a sentence that begins with its name."""
