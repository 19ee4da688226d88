"""A tokenizer of CLIP's own class whose vocabulary is the words of the scenes' captions.

An English word is one token. A Chinese character is one token: CLIP splits at spaces, and Chinese words stand
without any. All other text falls into bytes, so nothing is ever unknown to the tokenizer.
"""

from __future__ import annotations

import itertools
from collections import Counter

from transformers import CLIPTokenizer

#: Tokens of a prompt, the two marks at its ends included. The longest caption has 32.
LENGTH = 40

END = "</w>"


def new_tokenizer(words: list[str]) -> CLIPTokenizer:
    """A tokenizer for these words; Chinese ones are taken apart into characters."""
    letters = _byte_letters()
    english = sorted({word for word in words if word.isascii()})
    chinese = sorted({character for word in words if not word.isascii() for character in word})
    merges = [merge for character in chinese for merge in _character(character, letters)] + _merges(english)
    merges = list(dict.fromkeys(merges))
    tokens = [*letters, *(letter + END for letter in letters), *(a + b for a, b in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


def _character(character: str, letters: list[str]) -> list[tuple[str, str]]:
    """Merges that make one token of a character's bytes, within a word and at its end."""
    first, *others, last = [letters[byte] for byte in character.encode()]
    merges = []
    whole = first
    for other in others:
        merges.append((whole, other))
        whole += other
    return [*merges, (whole, last), (whole, last + END)]


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges until every word is one token, the commonest pair first."""
    parts = {word: [*word[:-1], word[-1] + END] for word in words}
    merges = []
    while pairs := Counter(pair for split in parts.values() for pair in itertools.pairwise(split)):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        parts = {word: _merged(split, best) for word, split in parts.items()}
    return merges


def _merged(split: list[str], pair: tuple[str, str]) -> list[str]:
    found: list[str] = []
    for part in split:
        if found and (found[-1], part) == pair:
            found[-1] += part
        else:
            found.append(part)
    return found


def _byte_letters() -> list[str]:
    """A printable letter for each byte, as byte-level BPE has them: itself, or one above 255."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    above = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(above)) for byte in range(256)]
