"""Small SentencePiece models, trained in a moment."""

import io
from typing import Any

ENGLISH = [
    "The cat sat on the mat, and the dog that sat there saw the cat.",
    "In 1984 there were 12 monkeys; they ate 365 bananas a day.",
    "    def indented(text):\n        return text.strip()\n",
] * 4

LANGUINI: dict[str, Any] = {
    "model_type": "bpe",
    "add_dummy_prefix": False,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "byte_fallback": True,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
    "pad_id": 0,
    "unk_id": 1,
    "bos_id": -1,
    "eos_id": -1,
    "user_defined_symbols": ["<D>"],
}
"""The options of Languini's models: lossless, and ``<D>`` (id 2) separates documents."""


def trained_model(**options: Any) -> bytes:
    """Return the file of a model trained on ``ENGLISH``. Without options it is SentencePiece's
    default: unigram, NFKC, a space before the text, and ``</s>`` ends a sentence."""
    import sentencepiece

    content = io.BytesIO()
    size = 320 if options.get("byte_fallback") else 60
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(ENGLISH),
        model_writer=content,
        minloglevel=2,
        **{"vocab_size": size, "hard_vocab_limit": False, **options},
    )
    return content.getvalue()
