"""Tokenizers: loaded, held against their encoder's vocabulary, and watched for what they cut."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ModelUnavailable

#: Each of these holds a whole vocabulary.
_VOCABULARIES = (
    *("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model", "tekken.json"),
    *("sentencepiece.bpe.model", "spm.model", "source.spm"),
)

#: Tokenizers over bytes, which need no files.
_OVER_BYTES = ("ByT5Tokenizer",)

#: A vocabulary is padded to some multiple; below this part of it, the files are another model's, or not there.
_LEAST_PART = 1 / 2


@dataclass(frozen=True, slots=True)
class Read:
    """One text that a tokenizer was given.

    Attributes:
        is_cut: Whether it was longer than allowed.
        tokens: How many there were in the end, without padding.
    """

    is_cut: bool
    tokens: int


def load_tokenizer(name: str, component: str, folder: Path, kind: Any) -> Any:
    """A tokenizer or a processor.

    Args:
        name: Of the model, for errors.
        component: Of the pipeline.
        folder: Where its files are.
        kind: Its class.

    Raises:
        ModelUnavailable: when its files are not there, or need a library that is not installed.
    """
    is_plain = kind.__name__ not in _OVER_BYTES and "Tokenizer" in kind.__name__
    if not folder.is_dir() or (is_plain and not any((folder / file).is_file() for file in _VOCABULARIES)):
        raise ModelUnavailable(
            f"the {component} of {name} has no vocabulary",
            saw=", ".join(sorted(path.name for path in folder.glob("*"))[:6]) or "no files",
            expected="one of " + ", ".join(_VOCABULARIES),
            hint="download the folder again",
            where=folder,
        )
    try:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds
        said = str(error).strip()
        for library in ("torchvision", "sentencepiece", "tiktoken", "mistral_common"):
            if library in said.lower():
                library = "sentencepiece" if (folder / "spiece.model").is_file() else library
                raise ModelUnavailable(
                    f"the {component} of {name} needs {library}",
                    hint=f"pip install {library.replace('_', '-')}",
                    where=folder,
                ) from None
        first = said.splitlines()[0][:200] if said else ""
        raise ModelUnavailable(
            f"the {component} of {name} cannot be read", saw=f"{type(error).__name__}: {first}", where=folder
        ) from None


def check_vocabulary(name: str, component: str, folder: Path, tokenizer: Any, encoder: Any) -> None:
    """Whether a tokenizer's tokens are those that the encoder knows.

    A folder without a vocabulary can load as a tokenizer that reads every prompt alike.

    Raises:
        ModelUnavailable: when it has more tokens than the encoder, or less than half as many.
    """
    known = encoder.get_input_embeddings().weight.shape[0]
    own = len(tokenizer)
    if not known * _LEAST_PART <= own <= known:
        raise ModelUnavailable(
            f"the {component} of {name} does not belong to its text encoder",
            saw=f"{own} tokens",
            expected=f"about {known}, as many as the encoder knows",
            hint="download both folders again",
            where=folder,
        )


def watched(tokenizer: Any, reads: list[Read]) -> Any:
    """The same tokenizer, which adds to ``reads`` every text that it is told to cut to a length."""
    kind = type(tokenizer)

    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        made = kind.__call__(self, *arguments, **options)
        if options.get("truncation"):
            texts = arguments[0] if arguments else options.get("text")
            reads.extend(_reads(kind, self, texts, options, made))
        return made

    tokenizer.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__, "__call__": call})
    return tokenizer


def _reads(kind: Any, tokenizer: Any, texts: Any, options: dict[str, Any], made: Any) -> Iterator[Read]:
    fast = made.encodings
    if fast:
        for one in fast:
            yield Read(bool(one.overflowing), sum(one.attention_mask))
        return
    most = options.get("max_length") or tokenizer.model_max_length
    for text in [texts] if isinstance(texts, str) else texts:  # of tokenizers that are written in Python
        tokens = len(kind.__call__(tokenizer, text)["input_ids"])
        yield Read(tokens > most, min(tokens, most))


@contextmanager
def fresh(reads: dict[str, list[Read]]) -> Iterator[dict[str, list[Read]]]:
    """The lists of all tokenizers, emptied before and after."""
    for texts in reads.values():
        texts.clear()
    try:
        yield reads
    finally:
        for texts in reads.values():
            texts.clear()
