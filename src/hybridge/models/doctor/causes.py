"""The codes of everything that the doctor and the server's checks can name, each with its meaning.

The codes are part of the wire: an error's JSON has one as ``cause``, the header ``hybridge-findings`` has those of
warnings.  They never change their meaning.  ``docs/doctor.md`` is generated from these rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...errors import RequestError

#: ``error``: the request is refused, or the result is worthless.  ``warning``: the result may still be meant.
#: ``either``: an error where it is certain, else a warning.
Severity = Literal["error", "warning", "either"]

#: What a code is about.
About = Literal["body", "shape", "scaling", "numbers", "pixels", "answer", "weights", "server", "file", "verify"]


@dataclass(frozen=True, slots=True)
class Cause:
    """One code.

    Attributes:
        code: The code.
        about: What it is about.
        severity: Whether it is an error.
        meaning: What was seen, as a sentence for the documentation.
        advice: What to do.
    """

    code: str
    about: About
    severity: Severity
    meaning: str
    advice: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One cause that was found.

    Attributes:
        code: One of :data:`CAUSES`.
        text: What was seen, in ASCII where it may become a header.
        hint: What to try.
        is_certain: Whether it is an error, for a cause that may be one.
    """

    code: str
    text: str
    hint: str | None = None
    is_certain: bool = False

    def __str__(self) -> str:
        return f"{self.text}. Try: {self.hint}" if self.hint else self.text

    @property
    def is_error(self) -> bool:
        """Whether the result is worthless."""
        severity = CAUSES[self.code].severity
        return severity == "error" or (severity == "either" and self.is_certain)

    def as_error(self, what: str, *, expected: object = None) -> RequestError:
        """Return the error that refuses a request because of it."""
        return RequestError(what, saw=self.text, expected=expected, hint=self.hint, cause=self.code)


_BODY = (
    Cause(
        "wrong-length",
        "body",
        "error",
        "the body has more or fewer bytes than its shape and dtype need",
        "the tensor's elements alone, contiguous, with the shape and the dtype that it has",
    ),
    Cause(
        "file-as-tensor",
        "body",
        "error",
        "the body is a file (.npy, .npz, .pt, safetensors, a picture) and not bare numbers",
        "the elements alone, or `hybridge decode FILE`",
    ),
    Cause("base64-as-bytes", "body", "error", "the body is base64", "Content-Type: tensor/base64, or the bytes"),
    Cause("compressed-body", "body", "error", "the body is compressed", "the bytes without gzip or zstd"),
    Cause(
        "unknown-dtype",
        "body",
        "error",
        "a dtype that the wire does not have",
        "float32, float16, bfloat16, or uint8 for pixels",
    ),
    Cause("uint8-latents", "body", "error", "latents of bytes, which no model has", "floats; pixels are encoded"),
    Cause(
        "wrong-dtype",
        "body",
        "error",
        "numbers that are nonsense in the dtype of the request and latents in another",
        "the dtype that the error names",
    ),
    Cause(
        "wrong-byte-order",
        "body",
        "error",
        "numbers that are nonsense as little-endian and latents as big-endian",
        "little-endian bytes: array.astype('<f4')",
    ),
    Cause(
        "freed-memory",
        "body",
        "either",
        "damage within the first 32 bytes alone, as diffusers' client since 0.39 does to tensors on a GPU",
        "tensor.detach().cpu().contiguous() before sending; hybridge's client does it",
    ),
)

_SHAPE = (
    Cause(
        "latents-of-another-model",
        "shape",
        "error",
        "the number of channels is another model's, which is named",
        "the address of that model",
    ),
    Cause("unknown-channels", "shape", "error", "a number of channels that no model has", "the right tensor"),
    Cause(
        "moments-as-latents",
        "shape",
        "error",
        "twice the channels: an encoder's mean and variance",
        "the first half of the channels",
    ),
    Cause(
        "pixels-as-latents",
        "shape",
        "either",
        "three channels, or four of numbers within 0 to 1, one of them alpha",
        "the encode endpoint",
    ),
    Cause("channels-last", "shape", "error", "the channels are the last axis", "permute(0, 3, 1, 2)"),
    Cause("batch-and-channels-swapped", "shape", "error", "the channels are the first axis", "transpose(0, 1)"),
    Cause(
        "frames-and-channels-swapped",
        "shape",
        "error",
        "the frames are where the model has channels",
        "transpose(1, 2)",
    ),
    Cause(
        "tokens-and-channels-swapped",
        "shape",
        "error",
        "packed latents with their channels before the tokens",
        "transpose(1, 2)",
    ),
    Cause("missing-axes", "shape", "error", "fewer axes than latents have", "all axes, one `shape` for each"),
    Cause(
        "video-to-picture-model", "shape", "error", "latents with frames for a model of pictures", "a video model"
    ),
    Cause(
        "picture-to-video-model", "shape", "error", "latents without frames for a model of videos", "unsqueeze(2)"
    ),
    Cause(
        "packed-without-size",
        "shape",
        "error",
        "packed latents without height and width; the sizes that fit are named",
        "height and width in pixels",
    ),
    Cause(
        "packed-size-mismatch",
        "shape",
        "error",
        "packed latents whose number of tokens does not fit height and width; the sizes that fit are named",
        "the size that the pipeline was called with",
    ),
    Cause("packed-of-another-model", "shape", "error", "tokens of another model, which is named", "that model"),
    Cause(
        "patchified-latents",
        "shape",
        "error",
        "four times the channels: 2×2 latents folded into one",
        "the pipeline's own unpacking",
    ),
    Cause(
        "inpainting-size",
        "shape",
        "error",
        "an image or a mask beside the latents that has not the size of the decoded picture",
        "both in the size of that picture",
    ),
    Cause(
        "size-cropped",
        "shape",
        "warning",
        "the picture is smaller than height and width say, because sides are multiples of 8 or 16",
        "a height and width that are multiples of 16",
    ),
)

_SCALING = (
    Cause(
        "scaling-factor-of-another-model",
        "scaling",
        "warning",
        "scaling_factor and shift_factor are another model's, which is named",
        "the model's own factors, or the other model",
    ),
    Cause(
        "wrong-shift-factor",
        "scaling",
        "warning",
        "scaling_factor is the model's and shift_factor is missing or another",
        "both of the model's factors",
    ),
    Cause(
        "unlikely-scaling",
        "scaling",
        "warning",
        "with this scaling the latents are many times larger or smaller than the model's",
        "the model's own factors, from /v1/models",
    ),
    Cause(
        "latents-look-normalised",
        "scaling",
        "warning",
        "latents sent as the VAE's own have the statistics of a pipeline's",
        "scaling_factor (and shift_factor), or do_scaling=True",
    ),
    Cause(
        "latents-look-denormalised",
        "scaling",
        "warning",
        "latents sent as a pipeline's have the statistics of the VAE's own",
        "no scaling_factor, and do_scaling=False",
    ),
    Cause(
        "tiny-without-parent",
        "scaling",
        "warning",
        "unscaled latents for a tiny autoencoder whose scaling is not known",
        "scaling_factor, or a folder named after the model",
    ),
)

_NUMBERS = (
    Cause(
        "not-finite",
        "numbers",
        "error",
        "NaN or infinity in what was sent",
        "float32 or bfloat16 where the latents are made",
    ),
    Cause(
        "absurd-numbers",
        "numbers",
        "error",
        "finite numbers beyond any latents",
        "the right tensor, and the right scaling factor",
    ),
    Cause(
        "no-mask",
        "numbers",
        "error",
        "a mask with numbers below 0 or above 1, or of bytes that are all 0 or 1",
        "floats where 1 is painted anew, or bytes where 255 is",
    ),
    Cause(
        "height-and-width-swapped",
        "numbers",
        "warning",
        "packed latents that are smooth when height and width are exchanged, and are not as sent",
        "height and width in the other order",
    ),
)

_PIXELS = (
    Cause("latents-as-pixels", "pixels", "error", "latents sent to be encoded", "the decode endpoint"),
    Cause("not-an-image", "pixels", "error", "a shape that no pictures have", "[batch, 3, height, width]"),
    Cause(
        "pixels-channels-last", "pixels", "error", "floats with the colours on the last axis", "permute(0, 3, 1, 2)"
    ),
    Cause("alpha-channel", "pixels", "error", "pixels with an alpha channel", "the three colours alone"),
    Cause("grey-pixels", "pixels", "error", "pixels of one channel", "expand(-1, 3, -1, -1)"),
    Cause("bytes-as-floats", "pixels", "error", "floats from 0 to 255", "uint8, or numbers divided by 255"),
    Cause(
        "side-not-a-multiple",
        "pixels",
        "error",
        "a tensor's side is no multiple of the model's factor",
        "crop or pad, or send a file, which is resized",
    ),
    Cause("picture-resized", "pixels", "warning", "a file was resized to a multiple of 8", "such a size"),
    Cause(
        "frames-dropped",
        "pixels",
        "either",
        "frames beyond the model's rule were left out, as diffusers leaves them out",
        "a number of frames that the model has",
    ),
    Cause(
        "impossible-frames",
        "pixels",
        "error",
        "a number of frames that the model cannot encode",
        "one of the numbers that the error names",
    ),
    Cause(
        "uneven-frames", "pixels", "warning", "a video's frames have different durations", "a constant frame rate"
    ),
    Cause("first-frame-only", "pixels", "warning", "of an animation the first frame was read", "one picture"),
)

_ANSWER = (
    Cause(
        "float16-overflow",
        "answer",
        "error",
        "the model gave NaN or infinity in float16",
        "`hybridge serve --dtype float32`, or weights that survive float16",
    ),
    Cause("not-finite-output", "answer", "error", "the model gave NaN or infinity", "other latents or weights"),
    Cause(
        "flat-output",
        "answer",
        "warning",
        "one colour, black for example, from latents that vary",
        "a look at the weights, the dtype and the scaling",
    ),
    Cause(
        "video-padded",
        "answer",
        "warning",
        "a video has a column or row more than its frames, because yuv420p needs even sides",
        "pixel_format=yuv444p",
    ),
    Cause(
        "output-out-of-range",
        "answer",
        "warning",
        "most of the picture is far outside of what a screen shows",
        "a look at the scaling and the model",
    ),
)

_FILE = (
    Cause(
        "unreadable-file", "file", "error", "the file is damaged or of another format", "the file that was meant"
    ),
    Cause("git-lfs-pointer", "file", "error", "a pointer of Git LFS in place of a file", "git lfs pull"),
    Cause(
        "unknown-space",
        "file",
        "warning",
        "the file does not say whether its latents are scaled; the doctor guesses by their statistics",
        "--scaled or --no-scaled of `hybridge decode`",
    ),
)

_WEIGHTS = (
    Cause(
        "config-wrong",
        "weights",
        "error",
        "config.json is missing, damaged or of no class here",
        "the right folder",
    ),
    Cause(
        "weights-incomplete",
        "weights",
        "error",
        "weights are missing or do not fit config.json",
        "another download",
    ),
    Cause("pickled-weights", "weights", "error", "the weights are pickled", "hybridge convert"),
    Cause(
        "only-a-variant", "weights", "warning", "only the fp16 variant of the weights is there", "the plain weights"
    ),
    Cause(
        "float16-overflow-risk",
        "weights",
        "warning",
        "config.json says force_upcast: in float16 the pictures may be black",
        "--dtype float32 or bfloat16",
    ),
    Cause(
        "scaling-factor-missing",
        "weights",
        "warning",
        "config.json has no scaling_factor, so that the class's default is used",
        "the factor of the model that the VAE belongs to",
    ),
    Cause(
        "scaling-of-no-family",
        "weights",
        "warning",
        "the factors are those of no model that hybridge knows",
        "the factors of the pipeline that makes the latents",
    ),
    Cause(
        "text-not-served", "weights", "warning", "the text encoders of this pipeline are not known here", "its VAE"
    ),
    Cause("text-incomplete", "weights", "error", "files of a text encoder are missing", "another download"),
)

_SERVER = (
    Cause(
        "unreachable", "server", "error", "no answer from this address", "the address, and whether the server runs"
    ),
    Cause("certificate-not-trusted", "server", "error", "the server's certificate is not trusted", "--ca FILE"),
    Cause("key-needed", "server", "error", "the server wants a key, or another one", "--key, or HYBRIDGE_KEY"),
    Cause("not-hybridge", "server", "error", "something else answers at this address", "the server's address"),
    Cause(
        "other-version", "server", "warning", "the server has another version than this program", "equal versions"
    ),
    Cause("clock-differs", "server", "warning", "the clocks differ by more than a minute", "NTP on both machines"),
    Cause("not-ready", "server", "error", "the server takes no work", "its log"),
    Cause("model-failed", "server", "error", "a model could not be loaded", "the server's log"),
    Cause("decode-failed", "server", "error", "a small decode failed", "the server's log"),
)

_VERIFY = (
    Cause(
        "other-picture", "verify", "error", "the latents decode to another picture", "the right latents or model"
    ),
    Cause("other-size", "verify", "error", "the latents decode to another size", "the right latents"),
    Cause("other-latents", "verify", "warning", "the receipt names other latents", "the file that was decoded"),
    Cause("other-weights", "verify", "warning", "the weights are not those of the receipt", "the same weights"),
    Cause(
        "other-precision",
        "verify",
        "warning",
        "dtype, device, threads or exactness are not those of the receipt: the last bits may differ",
        "--dtype and --device, or --exactness bitwise",
    ),
    Cause("other-libraries", "verify", "warning", "versions are not those of the receipt", "the same versions"),
    Cause("lossy-picture", "verify", "warning", "the file format loses information", "PNG, or lossless WebP"),
)

CAUSES: dict[str, Cause] = {
    cause.code: cause
    for cause in (*_BODY, *_SHAPE, *_SCALING, *_NUMBERS, *_PIXELS, *_ANSWER, *_FILE, *_WEIGHTS, *_SERVER, *_VERIFY)
}
