"""Settings of the data and of validation."""

from __future__ import annotations

from typing import Annotated

from annotated_types import MinLen

from engine.config.fields import Section, setting
from engine.config.setting_types import (
    Count,
    CountOrNone,
    DataFile,
    DataPath,
    NewPath,
    PositiveShare,
    Share,
    SourceName,
    TokenizerName,
)


class DataSettings(Section):
    """The training and validation data."""

    type: SourceName = setting(
        "source; 'auto' detects the format of files by content, 'text' reads them as plain text",
        "auto",
    )
    path: DataPath | Annotated[tuple[DataPath, ...], MinLen(1)] | None = setting(
        "files, folders (with all files below) and glob patterns; gzip, bzip2 and xz are "
        "decompressed; None: a text that comes with Python",
        None,
    )
    key: str = setting("key of the text in a JSON object", "text")
    tokenizer: TokenizerName = setting("tokenizer of the text", "gpt2")
    tokenizer_path: DataFile | None = setting(
        "model file of the tokenizer 'sentencepiece'; it is stored with the run", None
    )
    truncate: PositiveShare = setting(
        "fraction of the characters of the text that is used, from the first", 1.0
    )
    validation: Share = setting("fraction of the tokens used for validation", 0.1)
    cache: NewPath | None = setting("folder of tokenised text; None: the user's cache folder", None)


class EvalSettings(Section):
    """Validation."""

    every: CountOrNone | None = setting(
        "steps between validations; None: at the end; 0: never", None
    )
    batches: Count = setting("global batches per validation", 8)
