"""Settings of the data and of validation."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import MinLen

from engine.config.fields import Section, setting
from engine.config.setting_types import (
    CodebookSize,
    Count,
    CountOrNone,
    DataFile,
    DataPath,
    NewPath,
    Positive,
    PositiveShare,
    Seed,
    Share,
    SourceName,
    TokenizerName,
)

FILE_TYPES = ("auto", "text", "json", "jsonl")
"""The sources of text in files."""
ENDLESS_TYPES = ("synthetic", "lanes")
"""The sources whose training data has no end, and so no epochs."""


class DataSettings(Section):
    """The training and validation data."""

    type: SourceName = setting(
        "source; 'auto' detects the format of files by content, 'text' reads them as plain text",
        "auto",
    )
    path: DataPath | Annotated[tuple[DataPath, ...], MinLen(1)] | None = setting(
        "files, folders (with all files below) and glob patterns; gzip, bzip2 and xz are "
        "decompressed; None: a text that comes with Python, or the digits of scikit-learn",
        None,
    )
    key: str = setting(
        "key of the text in a JSON object, or of the images in an .npz with several arrays", "text"
    )
    tokenizer: TokenizerName = setting("tokenizer of the text", "gpt2")
    tokenizer_path: DataFile | None = setting(
        "model file of the tokenizer 'sentencepiece'; it is stored with the run", None
    )
    truncate: PositiveShare = setting(
        "fraction of the characters of the text that is used, from the first", 1.0
    )
    validation: Share = setting(
        "fraction of the tokens, from their end, held out as the split 'validation'",
        0.1,
        shown="0.1; 0 with data.validation_path or another eval.split",
    )
    validation_path: DataPath | Annotated[tuple[DataPath, ...], MinLen(1)] | None = setting(
        "like data.path, of other files, which become the split 'validation'", None
    )
    cache: NewPath | None = setting(
        "folder of tokenised text and encoded images; None: the user's cache folder", None
    )
    codes: CodebookSize | None = setting(
        "size of the codebook of images; None: 512 colours, or 256 grey levels (17 of the digits)",
        None,
    )
    codebook: DataPath | None = setting(
        "codebook to encode images with: a run, an export, or a .npy or .pt file of colours "
        "[size, 3]; None: fitted to the training images",
        None,
    )
    pixel_order: Seed | None = setting(
        "seed of a random order of the pixels, the same in all images; None: row by row", None
    )
    variants: Count = setting(
        "variants of each image to train on: the image, and others slightly rotated, sheared, "
        "scaled and moved, at random",
        1,
    )


class EvalSettings(Section):
    """Validation."""

    every: CountOrNone | None = setting(
        "steps between validations; None: not by steps, but at the end; 0: never", None
    )
    epochs: Positive | None = setting(
        "epochs between validations, such as 0.5; None: not by epochs", None
    )
    batches: Count = setting("global batches per validation", 8)
    samples: Count | Literal["all"] | None = setting(
        "samples per validation, 'all': the whole split; takes precedence over eval.batches", None
    )
    tokens: Count | None = setting(
        "tokens per validation, rounded up to samples; takes precedence over eval.batches", None
    )
    lanes: Count = setting("lanes of a split of data.type='lanes' when it is evaluated", 16)
    split: str = setting(
        "split to validate on: 'validation', 'train', or one that the source offers", "validation"
    )

    def max_samples(self, *, global_batch: int, seq_len: int) -> int | None:
        """Return the largest number of samples of a validation; None: all of the split."""
        if self.samples is not None:
            return None if self.samples == "all" else self.samples
        if self.tokens is not None:
            return -(-self.tokens // seq_len)
        return self.batches * global_batch
