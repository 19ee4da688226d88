"""Read JSON bodies: one long base64 string and a few parameters.

``json.loads`` takes thirty times the size of ``[{},{},…]``, and holds the interpreter's lock throughout.  So the
long string is cut out first, by searching only for quotes; the rest is refused unless it is small.  The string is
decoded in pieces, so that other threads run in between.
"""

from __future__ import annotations

import base64
import codecs
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NoReturn

from ..errors import RequestError, TooLarge

#: Most bytes of a body without its long strings.  Parameters take some hundred; parsing this many takes
#: milliseconds.
MAX_BYTES_BESIDE = 64 * 1024

#: Longest string, in bytes, that is parsed with the rest.
_MAX_TEXT = 4096

#: Most digits of an integer; 2⁶³ has 19.
_MAX_DIGITS = 25

#: Bytes that are decoded at a time: this holds the interpreter's lock for some milliseconds.
_PIECE = 2**20

#: JSON's longest escape is \u0000.
_ESCAPE_BYTES = 6

_DATA_URI = re.compile(rb"\s*data:[^,\"]{0,200};base64,", re.IGNORECASE)
_FROM_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_WHITESPACE = b" \t\r\n\f\v"

_FORM = '{"inputs": "<base64>", "parameters": {…}}'


def read_json_body(body: bytes) -> tuple[bytes, dict[str, Any]]:
    """Return the decoded bytes of ``inputs``, and ``parameters``.

    ``inputs`` is base64 in the standard or the URL-safe alphabet, with or without padding and line breaks, or a
    data URI with it.

    Raises:
        RequestError: for any other body; it says what is wrong.
        TooLarge: when the body without ``inputs`` is too large.
    """
    rest, texts = cut_out_texts(body.removeprefix(codecs.BOM_UTF8))
    document = parse_json(rest, _FORM)
    inputs = document.get("inputs") if isinstance(document, dict) else None
    parameters = (document.get("parameters") or {}) if isinstance(document, dict) else None
    if not isinstance(inputs, str) or not isinstance(parameters, dict):
        raise RequestError(
            "the JSON body has another form",
            saw=f"an object with the keys {[key[:40] for key in list(document)[:8]]}"
            if isinstance(document, dict)
            else "no object",
            expected=_FORM,
        )
    # A placeholder that the client wrote itself stands for its own text.
    encoded = texts.pop(inputs, None)
    if texts:
        raise TooLarge(
            "the JSON body has a long text beside `inputs`",
            saw=f"{max(map(len, texts.values()))} bytes",
            expected=f"at most {_MAX_TEXT}",
            hint="`inputs` and the parameters alone",
        )
    if encoded is None:
        try:
            encoded = memoryview(inputs.encode("ascii"))
        except UnicodeEncodeError:
            _refuse_base64("a character outside of its alphabet")
        return decode_base64(encoded), parameters
    return decode_base64(encoded, is_escaped=True), parameters


def read_small_json(body: bytes, *, most_bytes: int, form: str) -> Any:
    """Parse a JSON document after checking its size.

    Args:
        body: The document.
        most_bytes: Its largest size in bytes.
        form: The expected form, for errors.

    Raises:
        RequestError: when it is not JSON in UTF-8, or has a duplicate key, a number that is not finite, or a lone
            surrogate, which cannot be encoded.
        TooLarge: above ``most_bytes``.
    """
    if len(body) > most_bytes:
        raise TooLarge("the JSON body is too large", saw=f"{len(body)} bytes", expected=f"at most {most_bytes}")
    body = body.removeprefix(codecs.BOM_UTF8)
    _refuse_wide(body)
    document = parse_json(body, form)
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            "a text holds half a character",
            saw=f"the lone surrogate \\u{ord(error.object[error.start]):04x}",
            expected="whole characters: both surrogates of one, or UTF-8 without escapes",
        ) from None
    return document


def _refuse_wide(body: bytes) -> None:
    if body[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or b"\0" in body[:4]:
        raise RequestError("the body is not JSON", saw="what looks like UTF-16 or UTF-32", expected="JSON in UTF-8")


def cut_out_texts(body: bytes) -> tuple[bytes, dict[str, memoryview]]:
    """Return the body with a placeholder for each long string, and the strings, still escaped, by placeholder.

    Raises:
        RequestError: when it is not in UTF-8.
        TooLarge: when the rest is too large, or one of its strings is long and not base64.
    """
    _refuse_wide(body)
    view = memoryview(body)
    kept: list[bytes] = []
    texts: dict[str, memoryview] = {}
    at = kept_bytes = 0
    while True:
        most = at + MAX_BYTES_BESIDE - kept_bytes
        opening = body.find(b'"', at, most + 1)
        closing = None if opening < 0 else _closing_quote(body, opening + 1)
        if closing is None:
            end = min(len(body), most + 1)
            piece = body[at:end]
        elif closing - opening > _MAX_TEXT:
            name = f"\0{len(texts)}"
            texts[name] = view[opening + 1 : closing]
            piece = body[at:opening] + json.dumps(name).encode()
        else:
            piece = body[at : closing + 1]
        kept.append(piece)
        kept_bytes += len(piece)
        if kept_bytes > MAX_BYTES_BESIDE:
            raise TooLarge(
                "the JSON body is too large beside `inputs`",
                saw=f"more than {MAX_BYTES_BESIDE} bytes",
                expected=f"at most {MAX_BYTES_BESIDE}",
                hint=f"the form {_FORM}, or Content-Type tensor/binary with the tensor's bytes as the body",
            )
        if closing is None:
            return b"".join(kept), texts
        at = closing + 1


def _closing_quote(body: bytes, begin: int) -> int | None:
    """Return the end of the string that begins at ``begin``; None if it has no end."""
    at = begin
    while (quote := body.find(b'"', at)) >= 0:
        before = body[max(begin, quote - _MAX_TEXT) : quote]
        backslashes = len(before) - len(before.rstrip(b"\\"))
        if backslashes % 2 == 0 and backslashes < _MAX_TEXT:
            return quote
        if quote - begin > _MAX_TEXT:
            raise TooLarge(
                "the JSON body has a long text that is not base64",
                saw="a quote within a text of more than 4096 bytes",
                expected=_FORM,
                hint="`inputs` and the parameters alone",
            )
        at = quote + 1
    return None


def parse_json(rest: bytes, form: str) -> Any:
    """Parse JSON whose size was checked.

    Args:
        rest: The document.
        form: The expected form, for errors.

    Raises:
        RequestError: when it is not JSON, or has a duplicate key or a number that is not finite.
    """
    try:
        text = rest.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            "the body is not JSON", saw=f"the byte {rest[error.start]:#04x}, which is not UTF-8", expected=form
        ) from None
    try:
        return json.loads(
            text,
            strict=False,  # allows line breaks in a string, as the shell's ``base64`` makes them
            parse_int=_whole_number,
            parse_constant=_no_number,
            object_pairs_hook=_object,
        )
    except RecursionError:
        raise RequestError(
            "the body is not JSON", saw="brackets that are nested too deeply", expected=form
        ) from None
    except ValueError as error:
        raise RequestError("the body is not JSON", saw=str(error), expected=form) from None


def _whole_number(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise RequestError("the body is not JSON", saw=f"a number of {len(digits)} digits", expected="at most 19")
    return int(digits)


def _no_number(name: str) -> NoReturn:
    raise RequestError("the body is not JSON", saw=name, expected="finite numbers")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise RequestError("the JSON body has a key twice", saw=repr(twice[:40]), expected="each key once")
    return members


def decode_base64(encoded: memoryview, *, is_escaped: bool = False) -> bytes:
    """Decode base64 in any of the spellings of :func:`read_json_body`.

    Args:
        encoded: The base64 text.
        is_escaped: Whether it may contain JSON's escapes, such as ``\\/`` and ``\\u002b``, which PHP and .NET
            write.

    Raises:
        RequestError: when it is not base64.
    """
    prefix = _DATA_URI.match(bytes(encoded[:300]))
    decoded: list[bytes] = []
    left = b""
    for piece in _pieces(encoded[prefix.end() if prefix else 0 :], is_escaped=is_escaped):
        text = left + piece.translate(_FROM_URL_SAFE, _WHITESPACE)
        padding = text.find(b"=")
        whole = (len(text) if padding < 0 else padding) // 4 * 4
        decoded.append(_decode_exactly(text[:whole]))
        left = text[whole:]
        if len(left) > 4:
            _refuse_base64("`=` before its end")
    last = left.rstrip(b"=")
    if len(left) - len(last) > 2 or (left and len(last) < 2):
        _refuse_base64("an incomplete end")
    decoded.append(_decode_exactly(last + b"=" * (-len(last) % 4)))
    return b"".join(decoded)  # releases the interpreter's lock if this is long


def _pieces(encoded: memoryview, *, is_escaped: bool) -> Iterator[bytes]:
    at = 0
    while at < len(encoded):
        piece = bytes(encoded[at : at + _PIECE])
        if is_escaped and b"\\" in piece:
            cut = piece.find(b"\\", len(piece) - _ESCAPE_BYTES) if len(piece) == _PIECE else -1
            piece = piece if cut < 0 else piece[:cut]
        at += len(piece)
        if is_escaped and b"\\" in piece:
            try:
                piece = json.loads(b'"' + piece + b'"', strict=False).encode("ascii")
            except ValueError:
                _refuse_base64("a character outside of its alphabet")
        yield piece


def _decode_exactly(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:  # binascii.Error is a subclass
        _refuse_base64("a character outside of its alphabet")


def _refuse_base64(saw: str) -> NoReturn:
    raise RequestError("`inputs` is not base64", saw=saw, expected="the bytes of a tensor or a picture in base64")
