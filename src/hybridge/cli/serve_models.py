"""The backend of ``hybridge serve``: models on this machine's devices, or on replicas."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from ..models import ModelParts, TextSpec
    from ..scaleout.backend import ReplicaBackend
    from ..server.local_backend import LocalBackend
    from ..server.prompt_disk_cache import PromptDiskCache
    from ..server.scheduling.pool import DevicePool
    from ..server.settings import Settings


def backend_of(settings: Settings, console: Console) -> LocalBackend | DevicePool | ReplicaBackend:
    """Return what runs the models: a backend here, a pool of one for each device, or one with replicas elsewhere.

    Raises:
        HybridgeError: when a library is not installed, or a setting does not fit.
    """
    from ..engine import EngineOptions, granted_memory, offload_memory
    from ..engine.served_parts import resolve_parts
    from ..server.local_backend import LocalBackend
    from ..server.process.cloud_storage import fetched
    from ..server.scheduling.pool import UNLIMITED, DevicePool
    from ..units import format_bytes

    devices = settings.device
    models_parts = [resolve_parts(fetched(argument)) for argument in settings.models]
    vaes = [parts.vae for parts in models_parts if parts.vae is not None]
    texts, loras = _quantised(models_parts, settings), _lora_folder(settings)
    if settings.ray is not None:
        from .serve_replicas import replicas_of

        options = EngineOptions(devices[0], settings.dtype, settings.exactness, settings.spill)
        with console.status("waiting for a replica"):
            return replicas_of(settings, vaes, texts, options, loras)
    on_disk = _on_disk(settings)
    backends: list[LocalBackend] = []
    for device in devices:
        granted = granted_memory(device)
        memory_bytes = settings.memory or (granted and granted // devices.count(device))
        if settings.memory is None and memory_bytes is not None:
            console.print(
                f"memory for weights and runs: {format_bytes(memory_bytes)}, which this process is granted"
            )
        offload_bytes = settings.offload_memory
        if offload_bytes is None:
            offload_bytes = offload_memory(device) if texts else 0
            if offload_bytes:
                shown = format_bytes(offload_bytes // len(devices))
                console.print(
                    f"host memory for text encoders that leave {device}: {shown}, from half of what is available"
                )
        backends.append(
            LocalBackend(
                {},
                cold=vaes,
                texts=texts,
                prompt_cache_bytes=settings.prompt_cache_mib * 2**20 // len(devices),
                prompt_disk_cache=on_disk,
                lora_folder=loras,
                options=EngineOptions(device, settings.dtype, settings.exactness, settings.spill),
                limits=settings.queue_limits if len(devices) == 1 else UNLIMITED,
                memory_bytes=memory_bytes,
                offload_bytes=offload_bytes // len(devices),
            )
        )
    if len(backends) == 1:
        return backends[0]
    names = [
        device if devices.count(device) == 1 else f"{device}/{devices[:number].count(device)}"
        for number, device in enumerate(devices)
    ]
    return DevicePool(dict(zip(names, backends, strict=True)), settings.queue_limits)


def _quantised(models_parts: Sequence[ModelParts], settings: Settings) -> list[TextSpec]:
    """Return the text encoders, each with its quantisation.

    Raises:
        HybridgeError: when a library is not installed, or a model that was named has no text encoders.
    """
    from dataclasses import replace

    from ..engine.text.quantisation import check_installed
    from ..errors import HybridgeError

    texts = [parts.text for parts in models_parts if parts.text is not None]
    for value in settings.text_quantisation:
        name, _, kind = value.rpartition("=")
        check_installed(kind)
        if not any(name in ("", text.name) for text in texts):
            raise HybridgeError(
                f"--text-quantisation {value} has nothing to quantise",
                saw=", ".join(parts.name for parts in models_parts),
                expected="a model with text encoders",
            )
    return [replace(text, quantisation=settings.quantisation_of(text.name)) for text in texts]


def _lora_folder(settings: Settings) -> Path | None:
    from ..engine.text.lora import is_available
    from ..errors import HybridgeError

    folder = settings.lora_dir
    if folder is not None and not folder.is_dir():
        raise HybridgeError("no folder of LoRAs", saw=folder, expected="--lora-dir with a folder")
    if folder is not None and not is_available():
        raise HybridgeError("LoRAs need peft", hint="pip install 'hybridge[server,lora]'")
    return folder


def _on_disk(settings: Settings) -> PromptDiskCache | None:
    from ..errors import HybridgeError
    from ..server.prompt_disk_cache import PromptDiskCache

    folder = settings.prompt_cache_dir
    if folder is None:
        return None
    try:
        return PromptDiskCache(folder, int(settings.prompt_cache_gib * 2**30))
    except OSError as error:
        raise HybridgeError(
            "the folder of the prompt cache cannot be used", saw=f"{folder}: {error.strerror}", expected="a folder"
        ) from None
