"""The calls of both clients: their arguments are documented and checked here."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from ..protocol import Output, PromptConvention, ValueRange, VideoOptions, WireTensor
from ..protocol.video_formats import DEFAULT_VIDEO
from .call_types import DecodeOptions, EncodeOptions, ImageFormat, TensorOutput
from .conversion import Kind, best_kind, checked_kind
from .flow import Flows
from .flow_types import Flow, Progress, Terms
from .precision import Precision
from .prompt_flow import prompt_flow
from .prompts import prompt_request
from .vae_requests import decode_request, encode_request

if TYPE_CHECKING:
    from PIL.Image import Image
    from typing_extensions import Unpack

    from .call_types import Encodable, Latents, NumpyArray, PictureSource, Tensor, TorchTensor

# The types of results.  A blocking client returns the value itself, an async client a coroutine.
PicturesT = TypeVar("PicturesT")
VideoT = TypeVar("VideoT")
TorchT = TypeVar("TorchT")
NumpyT = TypeVar("NumpyT")
WireT = TypeVar("WireT")
EmbeddingsT = TypeVar("EmbeddingsT")


class Calls(abc.ABC, Generic[PicturesT, VideoT, TorchT, NumpyT, WireT, EmbeddingsT]):
    """The calls of both clients; an :class:`AsyncClient` returns each result as an awaitable."""

    _flows: Flows
    _deadline_s: float | None

    @abc.abstractmethod
    def _run(self, flow: Flow[Any]) -> Any:
        """Run ``flow`` and return its result."""

    @overload
    def decode(
        self, latents: Latents, *, output: Literal["picture"] = "picture", **options: Unpack[DecodeOptions]
    ) -> PicturesT: ...
    @overload
    def decode(self, latents: Latents, *, output: Literal["video"], **options: Unpack[DecodeOptions]) -> VideoT: ...
    @overload
    def decode(self, latents: TorchTensor, *, output: TensorOutput, **options: Unpack[DecodeOptions]) -> TorchT: ...
    @overload
    def decode(self, latents: NumpyArray, *, output: TensorOutput, **options: Unpack[DecodeOptions]) -> NumpyT: ...
    @overload
    def decode(self, latents: WireTensor, *, output: TensorOutput, **options: Unpack[DecodeOptions]) -> WireT: ...
    @overload
    def decode(
        self, latents: Latents, *, output: TensorOutput, **options: Unpack[DecodeOptions]
    ) -> TorchT | NumpyT | WireT: ...
    def decode(
        self,
        latents: Any,
        *,
        model: str | None = None,
        scaling_factor: float | None = None,
        shift_factor: float | None = None,
        do_scaling: bool | None = None,
        height: int | None = None,
        width: int | None = None,
        output: Output = "picture",
        image_format: ImageFormat = "png",
        quality: int | None = None,
        video: VideoOptions = DEFAULT_VIDEO,
        quantize: Precision | None = None,
        metadata: bool = False,
        decode_timestep: float | None = None,
        decode_noise_scale: float | None = None,
        seed: int | None = None,
        decode_chunk_size: int | None = None,
        image: Image | Tensor | None = None,
        mask: Image | Tensor | None = None,
        deadline_s: float | None = None,
        progress: Progress | None = None,
    ) -> Any:
        """Decode latents to a picture, or to a video; :meth:`Client.decode_video` writes one as it arrives.

        Args:
            latents: (B, C, H, W), (B, C, F, H, W) for video, or packed (B, S, C); a torch tensor, a NumPy array
                or a WireTensor, float64 rounded to float32; or the path of a file that
                :func:`hybridge.protocol.read_latents` reads.
            model: An id from :meth:`models`; if None, the one that the latents' file names, else the server infers
                it, and refuses if it cannot.
            scaling_factor: With ``shift_factor``, as in the VAE's config: z / scaling_factor + shift_factor.
                If None, the latents are in the VAE's own space already, or in the space that their file says.
            do_scaling: True scales as the model's own pipeline does; False never scales.  It is required for a file
                that does not say in which space its latents are, unless ``scaling_factor`` is given.
            height, width: The picture's size in pixels; needed only for packed latents.
            output: The kind of result; see below.
            image_format: The file format in which a picture is sent: ``png`` or ``webp`` (lossless), or ``jpg``.
            quality: Quality of a JPEG or a video, 1 to 100; 95 if None.
            video: The kind of file, for ``output="video"``: format, frames per second, codec, pixel format.
            quantize: ``float16`` or ``bfloat16`` sends fewer bytes than the latents have; None sends them
                unchanged.  docs/client.md describes the loss.
            metadata: Whether the file of a picture or a video says what made it: a receipt.  A picture that is
                returned has it in its ``info``.
            decode_timestep, decode_noise_scale, seed: For LTX-Video 0.9.1 and later, as its pipelines take the
                first two; ``seed`` is the noise's.
            decode_chunk_size: Frames that Stable Video Diffusion decodes together; all if None.
            image, mask: For AsymmetricAutoencoderKL, the picture that was inpainted and what was painted anew, both
                in the size of the decoded picture: PIL images, or arrays; floats of the image are in [-1, 1]
                (N, 3, H, W) and of the mask in [0, 1] (N, 1, H, W), bytes go to 255.  1 or white is new.
            deadline_s: Seconds for the whole call, attempts and waits included; the client's own if None.
            progress: ``progress("up" or "down", bytes done, bytes in total or None)``, called during transfers.

        Returns:
            * ``picture``: a PIL image, or for a batch a list of images, requested one by one
            * ``unit``: (N, 3, H, W) floats in [0, 1]
            * ``signed``: (N, 3, H, W) floats as the VAE returns them, about [-1, 1]
            * ``pixels``: (N, H, W, 3) uint8
            * ``video``: the bytes of the file

            Tensors have the same kind as the latents; NumPy has no bfloat16, so float32 is returned.
        """
        request, kind, model = decode_request(
            latents,
            model=model,
            scaling_factor=scaling_factor,
            shift_factor=shift_factor,
            do_scaling=do_scaling,
            height=height,
            width=width,
            output=output,
            image_format=image_format,
            quality=quality,
            video=video,
            quantize=quantize,
            metadata=metadata,
            decode_timestep=decode_timestep,
            decode_noise_scale=decode_noise_scale,
            seed=seed,
            decode_chunk_size=decode_chunk_size,
            image=image,
            mask=mask,
        )
        return self._run(self._flows.decode(request, model, kind, self._terms(deadline_s, progress)))

    @overload
    def encode(self, image: Encodable, *, kind: Literal["torch"], **options: Unpack[EncodeOptions]) -> TorchT: ...
    @overload
    def encode(self, image: Encodable, *, kind: Literal["numpy"], **options: Unpack[EncodeOptions]) -> NumpyT: ...
    @overload
    def encode(self, image: Encodable, *, kind: Literal["wire"], **options: Unpack[EncodeOptions]) -> WireT: ...
    @overload
    def encode(self, image: TorchTensor, *, kind: None = None, **options: Unpack[EncodeOptions]) -> TorchT: ...
    @overload
    def encode(self, image: NumpyArray, *, kind: None = None, **options: Unpack[EncodeOptions]) -> NumpyT: ...
    @overload
    def encode(self, image: WireTensor, *, kind: None = None, **options: Unpack[EncodeOptions]) -> WireT: ...
    @overload
    def encode(
        self, image: Encodable, *, kind: Kind | None = None, **options: Unpack[EncodeOptions]
    ) -> TorchT | NumpyT | WireT: ...
    def encode(
        self,
        image: Any,
        *,
        model: str | None = None,
        scaling_factor: float | None = None,
        shift_factor: float | None = None,
        do_scaling: bool | None = None,
        value_range: ValueRange = "auto",
        sample: bool = False,
        seed: int | None = None,
        drop_frames: bool = True,
        kind: Kind | None = None,
        deadline_s: float | None = None,
        progress: Progress | None = None,
    ) -> Any:
        """Encode a picture to latents (N, C, H, W), or a video to those that its model has.

        Args:
            image: A PIL image, the path or the bytes of a picture file, uint8 (H, W, 3) or (N, H, W, 3), or
                floats (N, 3, H, W); arrays may be torch, NumPy or WireTensor.  Of a video: the path or the bytes
                of an MP4 or WebM, a list of PIL images, uint8 (F, H, W, 3), or floats (1, 3, F, H, W).
            model: An id from :meth:`models`; if None, the server infers it, and refuses if it cannot.
            scaling_factor: With ``shift_factor``: (z - shift_factor) * scaling_factor.  If None, the latents are
                returned in the VAE's own space.
            do_scaling: True scales as the model's own pipeline does; False never scales.
            value_range: The range of floats: ``unit`` [0, 1], ``signed`` [-1, 1], ``auto`` is signed if any is
                below 0.
            sample: Whether to draw a sample from the posterior instead of taking its mode.
            seed: Makes the sample repeatable.
            drop_frames: Whether frames may be left out that the model cannot encode, with a warning; else the
                request is refused.
            kind: ``torch``, ``numpy`` or ``wire``.  If None, the kind of the input array, or for pictures the first
                of the three that is installed.
            deadline_s: Seconds for the whole call, attempts and waits included; the client's own if None.
            progress: ``progress("up" or "down", bytes done, bytes in total or None)``, called during transfers.
        """
        request, natural_kind = encode_request(
            image,
            scaling_factor=scaling_factor,
            shift_factor=shift_factor,
            do_scaling=do_scaling,
            value_range=value_range,
            sample=sample,
            seed=seed,
            drop_frames=drop_frames,
        )
        terms = self._terms(deadline_s, progress)
        return self._run(self._flows.encode(request, model, checked_kind(kind) or natural_kind, terms))

    def encode_video(
        self,
        video: Any,
        *,
        model: str | None = None,
        kind: Kind | None = None,
        deadline_s: float | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> TorchT | NumpyT | WireT:
        """Encode a video to latents in its model's order of axes.

        Args:
            video: The path or the bytes of an MP4, WebM, GIF or animated WebP, a list of PIL images, uint8
                (F, H, W, 3), or floats (1, 3, F, H, W); arrays may be torch, NumPy or WireTensor.
            model, kind, deadline_s, progress: As for :meth:`encode`.
            options: The other arguments of :meth:`encode`.
        """
        request, natural_kind = encode_request(video, is_video=True, **options)
        terms = self._terms(deadline_s, progress)
        flow = self._flows.encode(request, model, checked_kind(kind) or natural_kind, terms)
        latents: TorchT | NumpyT | WireT = self._run(flow)
        return latents

    def encode_prompt(
        self,
        prompt: str | Sequence[str] | None,
        *,
        model: str | None = None,
        images: PictureSource | Sequence[PictureSource] | None = None,
        num_images_per_prompt: int = 1,
        drop_padding: bool = True,
        convention: PromptConvention = "diffusers",
        kind: Kind | None = None,
        deadline_s: float | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> EmbeddingsT:
        """Encode prompts to text embeddings, as keyword arguments for the pipeline: ``pipe(**embeddings)``.

        Args:
            prompt: A prompt, or a list of prompts.
            model: An id from :meth:`models`; if None, the only model that takes prompts.
            images: For pipelines whose embeddings depend on pictures: a PIL image, the path or the bytes of a file,
                or a list of these.
            num_images_per_prompt: How often each embedding is repeated, with repeats next to each other; see
                :func:`~hybridge.client.repeat_for_images`.  Call the pipeline without this argument.
            drop_padding: Whether the server may omit rows of padding where that changes no picture; the result
                has zeros there.
            convention: ``comfyui`` encodes as ComfyUI does, with weights as in ``(word:1.3)`` and as many chunks of
                77 tokens as the text needs; options are ``prompt_2``, ``prompt_3`` and ``clip_layer``.
            kind: ``torch``, ``numpy`` (float32 instead of bfloat16) or ``wire``; None for the first of these that
                is installed.
            deadline_s: Seconds for the whole call, attempts and waits included; the client's own if None.
            progress: ``progress("up" or "down", bytes done, bytes in total or None)``, called during transfers.
            options: Other arguments of the pipeline's ``__call__`` about text: ``negative_prompt`` (None is sent as
                null; if omitted, no negative embeddings are made), ``prompt_2``, ``max_sequence_length``,
                ``clip_skip``, ….  An omitted option has the default of ``__call__``.

        Returns:
            :class:`~hybridge.client.Embeddings`, a dict.  For ComfyUI, the entries of its CONDITIONING, each a list
            with a tensor for each prompt: ``cond``, and for most models ``pooled_output``.

        Raises:
            ServerRefused: for an option that this pipeline does not have; the error names the nearest one.
        """
        inputs = {"prompt": prompt, **options}
        request = prompt_request(inputs, images, drop_padding=drop_padding, convention=convention)
        kind, terms = checked_kind(kind) or best_kind(), self._terms(deadline_s, progress)
        embeddings: EmbeddingsT = self._run(
            prompt_flow(self._flows, request, model, kind, num_images_per_prompt, terms)
        )
        return embeddings

    def _begin_decode(
        self,
        latents: Any,
        *,
        model: str | None = None,
        deadline_s: float | None = None,
        progress: Progress | None = None,
        **arguments: Any,
    ) -> Flow[Any]:
        """Return the flow of :meth:`decode`: latents are read now, everything else happens when the flow runs."""
        request, kind, model = decode_request(latents, model=model, **arguments)
        return self._flows.decode(request, model, kind, self._terms(deadline_s, progress))

    def _begin_encode(
        self,
        image: Any,
        *,
        model: str | None = None,
        kind: Kind | None = None,
        deadline_s: float | None = None,
        progress: Progress | None = None,
        **arguments: Any,
    ) -> Flow[Any]:
        request, natural_kind = encode_request(image, **arguments)
        return self._flows.encode(
            request, model, checked_kind(kind) or natural_kind, self._terms(deadline_s, progress)
        )

    def _terms(self, deadline_s: float | None, progress: Progress | None) -> Terms:
        return Terms(self._deadline_s if deadline_s is None else deadline_s, progress)

    @property
    def server(self) -> str:
        """The server's address without secrets; several servers are separated by commas."""
        return ", ".join(str(server.address) for server in self._flows.fleet.servers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(repr(str(s.address)) for s in self._flows.fleet.servers)})"
