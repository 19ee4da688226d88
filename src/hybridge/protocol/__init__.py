"""The wire format: bytes ↔ typed requests and responses.

This is a pure library: no sockets, no HTTP library, and torch only in :mod:`hybridge.protocol.torch`.  The server
reads requests and writes answers with it; the client writes requests and reads answers.  ``docs/protocol.md``
describes the wire format of each kind of client.
"""

from .answers import EXPOSED_HEADERS, read_answer, write_answer
from .failure import read_failure, write_failure, write_status
from .latents_file import LatentsFile, read_latents
from .messages import (
    Answer,
    DecodeRequest,
    EncodeRequest,
    FileAnswer,
    HttpRequest,
    HttpResponse,
    Output,
    PictureFile,
    PictureFormat,
    Request,
    Scaling,
    Task,
    TensorAnswer,
    VaeTask,
    ValueRange,
    VideoFile,
)
from .multipart_answer import PARTED, PartsReader, end_parts, write_part
from .picture_files import sniff_picture
from .prompt import (
    Json,
    PromptAnswer,
    PromptConvention,
    PromptLimits,
    PromptRequest,
    TensorLayout,
)
from .prompt_answers import padding_of, read_prompt_answer, write_prompt_answer
from .prompt_requests import read_prompt_request, write_prompt_request
from .query import read_query
from .request_writer import write_request
from .requests import is_raw_tensor, read_request
from .safetensors_bytes import SAFETENSORS
from .tensor import ITEM_BYTES, PROMPT_ITEM_BYTES, WireTensor
from .video_formats import VideoOptions, sniff_video

__all__ = [
    "EXPOSED_HEADERS",
    "ITEM_BYTES",
    "PARTED",
    "PROMPT_ITEM_BYTES",
    "SAFETENSORS",
    "Answer",
    "DecodeRequest",
    "EncodeRequest",
    "FileAnswer",
    "HttpRequest",
    "HttpResponse",
    "Json",
    "LatentsFile",
    "Output",
    "PartsReader",
    "PictureFile",
    "PictureFormat",
    "PromptAnswer",
    "PromptConvention",
    "PromptLimits",
    "PromptRequest",
    "Request",
    "Scaling",
    "Task",
    "TensorAnswer",
    "TensorLayout",
    "VaeTask",
    "ValueRange",
    "VideoFile",
    "VideoOptions",
    "WireTensor",
    "end_parts",
    "is_raw_tensor",
    "padding_of",
    "read_answer",
    "read_failure",
    "read_latents",
    "read_prompt_answer",
    "read_prompt_request",
    "read_query",
    "read_request",
    "sniff_picture",
    "sniff_video",
    "write_answer",
    "write_failure",
    "write_part",
    "write_prompt_answer",
    "write_prompt_request",
    "write_request",
    "write_status",
]
