"""Reads a checkpoint of another trainer: a state dict in a file that ``torch.save`` wrote."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isqrt
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.data.images.codebook import Codebook
from engine.data.images.load_codebook import load_colours
from engine.data.tokenizer import Tokenizer, dump, tokenizer_type
from engine.errors import UserError
from engine.inout.import_model import ImportOptions
from engine.inout.saved_model import SavedModel, config_from
from engine.inout.tensor_readers import TensorFile, TorchFile, common_type
from models.trainer_state_dict import Sizes, StateDictNames, convert, without_prefix

STATE_DICTS = ("state_dict", "model_state_dict", "model_state")
"""Entries of a checkpoint that contain the state dict: Lightning's, Languini's, minGPT's."""
HYPERPARAMETERS = "hyper_parameters"
"""Entry of Lightning's checkpoints: the arguments that the model was built with."""


@dataclass(frozen=True, kw_only=True)
class TrainerModel(SavedModel):
    """The model of another trainer's checkpoint."""

    tensors: TensorFile
    """The tensors by the trainer's names."""
    sources: Mapping[str, list[str]]
    """The trainer's tensor names for each of cuboid's parameters."""

    def read_tensors(self) -> Iterator[tuple[str, Tensor]]:
        try:
            yield from convert(self.tensors, self.sources, self.config)
        except ValueError as error:
            raise UserError(f"{self.path}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class TrainerFormat:
    """The format of a trainer's checkpoints."""

    names: StateDictNames
    architecture: Mapping[str, Any]
    """Settings of the section ``model`` that all models of the trainer share."""
    rejected: Mapping[str, str] = field(default_factory=dict)
    """Regular expressions of tensor names that only occur in models that cuboid cannot represent,
    each with the reason."""

    def open_model(self, path: Path, options: ImportOptions) -> SavedModel:
        """Open the checkpoint ``path``.

        Raises UserError if the file is not of this format or an option is missing.
        """
        if path.is_dir():
            raise UserError(
                f"{path} is a folder, and these checkpoints are files; convert DeepSpeed's "
                "folder with its zero_to_fp32.py first"
            )
        file = TorchFile(path, STATE_DICTS)
        self._require_representable(path, file)
        stored = file.entry(HYPERPARAMETERS)
        try:
            sources = self.names.sources(file)
            sizes = Sizes.of(file, sources)
            config = config_from(self._section(path, sizes, stored, options))
            used = {name: file.dtypes[name] for names in sources.values() for name in names}
            dtype = common_type(used)
            convert(file, sources, config)  # raises if a name is missing
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None
        return TrainerModel(
            path=path,
            config=config,
            dtype=dtype,
            tokenizer=_tokenizer(options, sizes),
            tensors=file,
            sources=sources,
        )

    def _require_representable(self, path: Path, file: TensorFile) -> None:
        for pattern, reason in self.rejected.items():
            if any(re.fullmatch(pattern, without_prefix(name)) for name in file):
                raise UserError(f"{path} cannot be imported: {reason}")

    def _section(
        self, path: Path, sizes: Sizes, stored: Mapping[str, Any], options: ImportOptions
    ) -> dict[str, Any]:
        """Return the section ``model`` of a config for the checkpoint's model."""
        heads = options.n_head or stored.get("n_head")
        if not isinstance(heads, int):
            raise UserError(f"{path} does not store the number of attention heads; add --n-head N")
        if heads < 1 or sizes.attention_width % heads:
            raise UserError(
                f"--n-head={heads} does not divide the attention's width of "
                f"{sizes.attention_width:,} in {path}; pass a divisor"
            )
        rates = {n: stored[n] for n in ("embd_pdrop", "resid_pdrop", "attn_pdrop") if n in stored}
        return {
            "n_layer": sizes.n_layer,
            "n_head": heads,
            "n_embd": sizes.n_embd,
            "head_dim": sizes.attention_width // heads,
            "n_inner": sizes.n_inner,
            "vocab_size": sizes.vocab_size,
            "block_size": sizes.block_size,
            "tie_embeddings": False,
            **rates,
            **self.architecture,
        }


def _tokenizer(options: ImportOptions, sizes: Sizes) -> dict[str, Any] | None:
    """Load the tokenizer or the codebook that ``options`` name; None if they name none.

    Raises UserError if the tokenizer or the codebook does not fit the ``sizes`` of the model.
    """
    if options.codebook is not None:
        colours = load_colours(str(options.codebook))
        pixels = sizes.block_size + 1
        side = isqrt(pixels)
        if side * side != pixels:
            raise UserError(
                f"--codebook: {pixels:,} pixels, the model's positions and one more, are no "
                "square; leave it out"
            )
        name = f"--codebook={options.codebook}"
        tokenizer: Codebook | Tokenizer = Codebook(colours=colours, height=side, width=side)
    elif options.tokenizer is not None:
        name = f"--tokenizer={options.tokenizer}"
        tokenizer = tokenizer_type("sentencepiece").fit((), str(options.tokenizer))
    else:
        return None
    if tokenizer.size != sizes.vocab_size:
        raise UserError(
            f"{name} has {tokenizer.size:,} ids, and the model {sizes.vocab_size:,}; name the one "
            "that the model was trained with"
        )
    return dump(tokenizer)
