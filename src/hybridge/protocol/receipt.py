"""A receipt: what made a picture, as a header and as metadata of the picture's file.

It names the model, its weights, the precision and the libraries.  It has no prompts, keys, paths or addresses.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from .messages import DecodeRequest, FileAnswer, Scaling

#: The names that a receipt can have, in the order of the header.
FACTS = (
    *("model", "revision", "weights", "dtype", "device", "threads", "mode", "exactness"),
    *("hybridge", "torch", "diffusers", "latents", "image", "mask", "scaling"),
)

#: The keyword of the iTXt chunk of a PNG.
KEYWORD = b"hybridge"

#: The member of the JSON in the comment of a video file.
COMMENT = "hybridge"

#: Most characters of a value; a SHA-256 has 71 with its name.
_MOST = 200

#: Files that can have a receipt.
_TYPES = ("image/png", "image/jpeg", "image/webp")

_XMP_START = b"http://ns.adobe.com/xap/1.0/\0"

_XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:hybridge="urn:hybridge:receipt">'
    "<hybridge:receipt>{}</hybridge:receipt></rdf:Description></rdf:RDF></x:xmpmeta>"
)

_IN_XMP = re.compile(r"<hybridge:receipt>([^<]{1,8192})</hybridge:receipt>")


@dataclass(frozen=True, slots=True)
class Receipt:
    """Facts by their names, which are those of :data:`FACTS`."""

    facts: Mapping[str, str]

    @classmethod
    def of(cls, facts: Mapping[str, object]) -> Receipt:
        """Return a receipt of these facts; None and unknown names are left out."""
        known = {name: str(facts[name])[:_MOST] for name in FACTS if facts.get(name) is not None}
        return cls({name: re.sub(r"[^ -~]|[;=]", "?", value) for name, value in known.items()})

    def header(self) -> str:
        """Return the value of the header ``hybridge-receipt``."""
        return "; ".join(f"{name}={value}" for name, value in self.facts.items())

    @classmethod
    def from_header(cls, text: str) -> Receipt:
        """Return the receipt of a header."""
        pairs = (part.strip().partition("=") for part in text.split(";", len(FACTS) * 2))
        return cls.of({name: value for name, _, value in pairs})

    def to_json(self) -> str:
        """Return the receipt as it is in metadata."""
        return json.dumps(dict(self.facts))

    @classmethod
    def from_json(cls, text: str) -> Receipt | None:
        """Return the receipt of metadata; None if this is none."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            return None
        return cls.of(document) if isinstance(document, dict) else None


def with_receipt(answer: FileAnswer, request: DecodeRequest, facts: Mapping[str, object]) -> FileAnswer:
    """Return a picture's file with a receipt in its metadata; other files as they are.

    Args:
        answer: The file, as :func:`hybridge.protocol.media.write_picture` wrote it.
        request: The request, of which the receipt has the scaling and the SHA-256 of each tensor's bytes.
        facts: What made the picture.
    """
    if answer.media_type not in _TYPES:
        return answer
    receipt = _completed(request, facts)
    return FileAnswer(write_receipt(answer.data, answer.media_type, receipt), answer.media_type)


def comment_of(request: DecodeRequest, receipt: Receipt) -> str:
    """Return the comment of a video file with a receipt: JSON, with what the request adds to it."""
    return json.dumps({COMMENT: dict(_completed(request, receipt.facts).facts)})


def _completed(request: DecodeRequest, facts: Mapping[str, object]) -> Receipt:
    """Return a receipt with the scaling of the request and the SHA-256 of each of its tensors' bytes."""
    scaling = request.scaling
    factors = (scaling.scaling_factor, scaling.shift_factor)
    said = " ".join([scaling.by, *("-" if factor is None else f"{factor:g}" for factor in factors)])
    tensors = {"latents": request.latents, "image": request.image, "mask": request.mask}
    hashes = {
        name: f"sha256:{hashlib.sha256(tensor.data).hexdigest()}"
        for name, tensor in tensors.items()
        if tensor is not None
    }
    return Receipt.of({**facts, **hashes, "scaling": said})


def scaling_of(receipt: Receipt) -> Scaling | None:
    """Return the scaling of a receipt; None if it has none that can be read."""
    by, *factors = receipt.facts.get("scaling", "-").split() or ["-"]
    try:
        scale, shift = (None if text == "-" else float(text) for text in factors)
    except ValueError:
        return None
    return Scaling(by, scale, shift) if by in ("none", "given", "model") else None  # type: ignore[arg-type]


def write_receipt(data: bytes, media_type: str, receipt: Receipt) -> bytes:
    """Return a file that :func:`hybridge.protocol.media.write_picture` wrote, with the receipt in its metadata.

    A PNG has it in an iTXt chunk, a JPEG and a WebP in XMP.

    Args:
        data: The file.
        media_type: ``image/png``, ``image/jpeg`` or ``image/webp``.
        receipt: The receipt.
    """
    text = receipt.to_json()
    xmp = _XMP.format(html.escape(text, quote=False)).encode()
    if media_type == "image/png":
        body = b"iTXt" + KEYWORD + b"\0\0\0\0\0" + text.encode()
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        after = 8 + 25  # the signature and IHDR
        return data[:after] + chunk + data[after:]
    if media_type == "image/jpeg":
        segment = _XMP_START + xmp
        after = 4 + struct.unpack(">H", data[4:6])[0] if data[2:4] == b"\xff\xe0" else 2
        return data[:after] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[after:]
    return _webp_with_xmp(data, xmp)


def _webp_with_xmp(data: bytes, xmp: bytes) -> bytes:
    """Return a WebP of one lossless picture in the extended format, which may have metadata."""
    bits = int.from_bytes(data[21:25], "little")
    width, height = bits & 0x3FFF, (bits >> 14) & 0x3FFF  # both less one
    extended = b"VP8X" + struct.pack("<II", 10, 0x04) + width.to_bytes(3, "little") + height.to_bytes(3, "little")
    padded = xmp + b"\0" * (len(xmp) % 2)
    chunks = extended + data[12:] + b"XMP " + struct.pack("<I", len(xmp)) + padded
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def find_receipt(text_of_png: str | None, xmp: bytes | None) -> Receipt | None:
    """Return the receipt in a picture's metadata, as Pillow gives them in ``info``; None if there is none."""
    if isinstance(text_of_png, str):
        return Receipt.from_json(text_of_png)
    found = _IN_XMP.search(xmp.decode("utf-8", "replace")) if isinstance(xmp, bytes) else None
    return Receipt.from_json(html.unescape(found[1])) if found else None
