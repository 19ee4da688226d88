"""Every setting of the server: a flag of ``hybridge serve``, or a variable ``HYBRIDGE_…``."""

from __future__ import annotations

import difflib
import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from ..models import QUANTISATIONS
from .async_jobs.registry import AsyncJobLimits
from .cloud import Cloud, CloudName, cloud_named
from .flag import Flag
from .memory_settings import checked_folder, read_bytes, read_bytes_or_none
from .process.connection_limits import ConnectionLimits
from .process.pairing_folder import PairingFolder, default_folder
from .process.server import ListenOptions
from .replica_settings import check_replicas, checked_devices, checked_range, split_devices
from .scheduling.limits import MIB, Limits
from .scheduling.queue import QueueLimits
from .unknown_variables import KUBERNETES_PORT, PREFIX, refuse_unknown

#: Pillow refuses larger pictures as decompression bombs.
_MOST_PIXELS = 2 * 89_478_485

#: The heading of the flags about load, memory and async jobs.
_LOAD = "Waiting line, memory, long work"

#: The heading of those about replicas on other machines.
_REPLICAS = "Replicas in a Ray cluster"


class Settings(BaseSettings):
    """All settings; what is not given comes from the environment, then from the defaults here.

    ``hybridge serve`` makes its flags and their help of these fields, in their order.
    """

    # Empty is what compose files and shells make of a variable that nobody set.
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid", allow_inf_nan=False
    )

    models: Annotated[tuple[str, ...], NoDecode, Flag(is_positional=True)] = Field(
        default=("starter",),
        min_length=1,
        description="Names from `hybridge models`, with :vae or :text behind them for one part;"
        " NAME=PATH_OR_REPO for a pipeline of your own, NAME=PATH_OR_REPO[:subfolder] or NAME=FILE[:MODEL] for a"
        " VAE. The starter model, if none is given.",
    )
    host: str = Field(
        default="127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0 for other machines."
    )
    port: int = Field(default=8000, ge=0, le=65535, description="Port; 0 takes a free one.")
    device: Annotated[
        tuple[str, ...],
        NoDecode,
        BeforeValidator(split_devices),
        AfterValidator(checked_devices),
        Flag(default="auto"),
    ] = Field(
        default=("auto",),
        min_length=1,
        description="auto, cpu, cuda, cuda:1, mps; several, with commas or repeated, serve the same models.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="auto, float32, bfloat16 or float16."
    )
    text_quantisation: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Text encoders in 8 or 4 bits: KIND for all models, NAME=KIND for one; may be repeated. "
        + ", ".join(QUANTISATIONS)
        + ".",
    )
    exactness: Literal["bitwise", "rounding"] = Field(
        default="rounding",
        description="rounding runs the engine, in strips; bitwise runs diffusers' own forward, slower and"
        " larger, whose bits are a client's own with as many threads (see /v1/models).",
    )
    cloud: CloudName | None = Field(
        default=None,
        description="Follow the conventions of a cloud that runs this container: huggingface, sagemaker or vertex;"
        " port, paths and the folder of the model are then its own.",
    )
    default_model: str | None = Field(
        default=None, description="For requests that name no model where several fit."
    )
    queue_limit: int = Field(default=64, ge=1, description="Requests that may wait; one more gets 429.")
    max_body_mib: int = Field(default=256, ge=1, description="Largest request body in MiB.")
    max_pixels: int = Field(default=2048 * 2048, ge=64, le=_MOST_PIXELS, description="Most pixels in one request.")
    max_video_pixels: int = Field(
        default=32 * 2**20, ge=64, le=_MOST_PIXELS, description="Most pixels of a video, all frames together."
    )
    max_batch: int = Field(default=32, ge=1, description="Most pictures in one request.")
    cors: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Web origin that may call from a browser; may be repeated."
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode, Flag("--allowed-host")] = Field(
        default=(),
        description="Name under which a server without keys is called, such as a proxy's; may be repeated.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="debug, info, warning or error."
    )
    keys: Path | None = Field(
        default=None, description="File of API keys, from `hybridge keys add`; without it no key is needed."
    )
    public: bool = Field(default=False, description="Listen on every address; refused without --keys.")
    max_inflight_mib: int = Field(default=1024, ge=1, description="Most MiB of all bodies that are being received.")
    max_connections: int = Field(
        default=4096, ge=1, description="Most connections; the one that is idle longest makes room."
    )
    max_head_kib: int = Field(default=32, ge=1, description="Largest address and headers in KiB.")
    head_timeout_s: float = Field(default=10, gt=0, description="Seconds for the headers to arrive.")
    body_pause_s: float = Field(default=30, gt=0, description="Longest pause within a body in seconds.")
    tls_cert: Path | None = Field(default=None, description="File with a certificate in PEM, for HTTPS.")
    tls_key: Path | None = Field(default=None, description="File with its key.")
    pairing: bool = Field(
        default=False,
        description="Let `hybridge pair` invite other machines: HTTPS with a certificate of its own, and keys.",
    )
    pairing_dir: Annotated[Path | None, Flag(default="~/.local/share/hybridge")] = Field(
        default=None, description="Folder with that certificate and these keys."
    )
    announce: bool = Field(
        default=False, description="Tell the local network about this server by mDNS; refused without keys."
    )
    trusted_proxies: Annotated[tuple[str, ...], NoDecode, Flag("--trusted-proxy")] = Field(
        default=(),
        description="Address or network of a proxy whose X-Forwarded-For is believed; may be repeated.",
    )
    log_format: Literal["people", "json"] = Field(default="people", description="people or json.")
    otlp_endpoint: str | None = Field(
        default=None, description="OpenTelemetry collector's address for traces over HTTP."
    )
    grace_s: float = Field(default=60, ge=0, description="Seconds to finish accepted requests when told to end.")
    queue_work_s: Annotated[float, Flag(heading=_LOAD)] = Field(
        default=300, gt=0, description="Seconds of estimated work that may wait; beyond it 429."
    )
    queue_mib: Annotated[int, Flag(heading=_LOAD)] = Field(
        default=1024, ge=1, description="MiB of tensors that may wait; beyond it 429."
    )
    deadline_s: Annotated[float | None, Flag(heading=_LOAD, default="never")] = Field(
        default=None, gt=0, description="Time limit of a request in seconds; after it the answer is 504."
    )
    memory: Annotated[
        int | None,
        BeforeValidator(read_bytes),
        Flag(
            heading=_LOAD,
            default="on a CPU 3/4 of what a container or ulimit grants, if any does; else no bound",
            is_text=True,
        ),
    ] = Field(
        default=None,
        ge=1,
        description="What weights and runs may take together on each device, such as 8GiB; idle models leave"
        " for others.",
    )
    offload_memory: Annotated[
        int | None,
        BeforeValidator(read_bytes_or_none),
        Flag(heading=_LOAD, default="half of what is available at startup; 0 with --ray", is_text=True),
    ] = Field(
        default=None,
        ge=0,
        description="Host memory, such as 24GiB, in which text encoders wait that left a GPU to make room, instead"
        " of being read again; 0 for none.",
    )
    preload: Annotated[bool, Flag(heading=_LOAD)] = Field(
        default=False, description="Load all models before listening, not when they are first asked for."
    )
    spill: Annotated[
        Path | None,
        AfterValidator(checked_folder),
        Flag(heading=_LOAD, default="none: what does not fit is refused"),
    ] = Field(
        default=None,
        description="Folder for a CPU's activations, in files without a name, when --memory has no room for them.",
    )
    spool: Annotated[Path | None, Flag(heading=_LOAD, default="nothing is written to disk")] = Field(
        default=None, description="Folder in which long work survives the process."
    )
    spool_gib: Annotated[float, Flag(heading=_LOAD)] = Field(default=8, gt=0, description="GiB that it may take.")
    jobs_limit: Annotated[int, Flag(heading=_LOAD)] = Field(
        default=1000, ge=1, description="Jobs that are kept, with their results."
    )
    jobs_mib: Annotated[int, Flag(heading=_LOAD)] = Field(
        default=1024, ge=1, description="MiB that they may take without a spool."
    )
    prompt_cache_mib: Annotated[int, Flag(heading=_LOAD)] = Field(
        default=256,
        ge=0,
        description="MiB of text embeddings that are kept in memory for who asks for them again; 0 keeps none.",
    )
    prompt_cache_dir: Annotated[Path | None, Flag(heading=_LOAD, default="embeddings are not written to disk")] = (
        Field(
            default=None,
            description="Folder in which text embeddings survive the process; prompts are not written.",
        )
    )
    prompt_cache_gib: Annotated[float, Flag(heading=_LOAD)] = Field(
        default=8, gt=0, description="GiB that they may take there."
    )
    lora_dir: Annotated[Path | None, Flag(heading=_LOAD, default="none")] = Field(
        default=None,
        description="Folder of safetensors files with LoRAs, which requests for text embeddings may name.",
    )
    job_ttl_s: Annotated[float, Flag(heading=_LOAD)] = Field(
        default=3600, gt=0, description="Seconds for which a result is kept."
    )
    ray: Annotated[str | None, Flag(heading=_REPLICAS, default="the models run in this process")] = Field(
        default=None,
        description="Run the models as replicas of Ray Serve: auto in this machine's cluster, HOST:PORT in a"
        " head node's, local in one of this server's own.",
    )
    replicas: Annotated[str, AfterValidator(checked_range), Flag(heading=_REPLICAS)] = Field(
        default="1", description="Number of replicas, or LEAST:MOST, between which Ray chooses by load."
    )
    replica_cpus: Annotated[float, Flag(heading=_REPLICAS)] = Field(
        default=1, ge=0, description="Processors of each, and its threads; --memory is the bound of each."
    )
    replica_gpus: Annotated[float, Flag(heading=_REPLICAS)] = Field(
        default=0, ge=0, description="GPUs of each, or a share of one, such as 0.5."
    )

    @model_validator(mode="before")
    @classmethod
    def _add_the_defaults_of_a_cloud(cls, given: dict[str, Any]) -> dict[str, Any]:
        name: Any = given.get("cloud")
        known = name if name in get_args(CloudName) else None
        return given if known is None else {**cloud_named(known).defaults, **given}

    @field_validator("models", "cors", "allowed_hosts", "trusted_proxies", "text_quantisation", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Split a variable that holds several values with commas between them."""
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator(
        *("keys", "tls_cert", "tls_key", "pairing_dir", "spill", "spool", "prompt_cache_dir", "lora_dir"),
        mode="before",
    )
    @classmethod
    def _refuse_no_path(cls, value: object) -> object:
        if value == "":  # which would be the current folder
            raise ValueError("a path")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _read_networks(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        """Check addresses and networks; uvicorn would take anything else for a name, which no peer has."""
        networks = []
        for value in values:
            try:
                network = ipaddress.ip_network(value, strict=False)
            except ValueError:
                raise ValueError(f"{value!r} is no address or network, such as 10.0.0.2 or 10.0.0.0/8") from None
            if not network.prefixlen:
                raise ValueError("trusting every peer would let every client choose its own address")
            networks.append(str(network))
        return tuple(networks)

    @field_validator("port", mode="before")
    @classmethod
    def _ignore_kubernetes(cls, value: object) -> object:
        """Ignore HYBRIDGE_PORT where Kubernetes has set it for a service called hybridge."""
        is_theirs = isinstance(value, str) and KUBERNETES_PORT.fullmatch(value)
        return cls.model_fields["port"].default if is_theirs else value

    @model_validator(mode="after")
    def _check_default(self) -> Settings:
        names = [argument.partition("=")[0].partition(":")[0] for argument in self.models]
        if len(set(names)) < len(names):
            raise ValueError(f"two models of one name in {', '.join(names)}")
        if self.default_model is not None and self.default_model not in names:
            raise ValueError(f"the default model {self.default_model} is not among {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _check_quantisation(self) -> Settings:
        names = [argument.partition("=")[0].partition(":")[0] for argument in self.models]
        chosen = [value.rpartition("=")[::2] for value in self.text_quantisation]
        for name, kind in chosen:
            if kind not in QUANTISATIONS:
                near = difflib.get_close_matches(kind, QUANTISATIONS, n=1)
                raise ValueError(
                    f"no quantisation is called {kind[:40]}; there are {', '.join(QUANTISATIONS)}"
                    + (f" (try {near[0]})" if near else "")
                )
            if name and name not in names:
                raise ValueError(f"the quantised model {name[:40]} is not among {', '.join(names)}")
        if len({name for name, _ in chosen}) < len(chosen):
            raise ValueError("two quantisations for one model")
        return self

    def quantisation_of(self, name: str) -> str | None:
        """How a model's text encoders are quantised: as was asked for it, else as was asked for all."""
        chosen = {name: kind for name, _, kind in (value.rpartition("=") for value in self.text_quantisation)}
        return chosen.get(name, chosen.get(""))

    @model_validator(mode="after")
    def _check_what_goes_together(self) -> Settings:
        if self.public and self.keys is None and not self.pairing:
            raise ValueError("--public needs --keys FILE, which hybridge keys add FILE NAME makes, or --pairing")
        cloud = self.cloud_routes
        if cloud is not None and not cloud.has_keys and (self.keys is not None or self.pairing):
            raise ValueError(f"--cloud {self.cloud} passes no keys on to the server; it asks itself who calls")
        if self.cloud == "vertex" and "models" not in self.model_fields_set:
            raise ValueError("--cloud vertex needs a model: AIP_STORAGE_URI, HYBRIDGE_MODELS or an argument")
        if self.announce and self.keys is None and not self.pairing:
            raise ValueError("--announce needs --keys FILE or --pairing")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key go together")
        check_replicas(self.model_fields_set, has_ray=self.ray is not None, devices=len(self.device))
        if self.spill is not None and self.exactness == "bitwise":
            raise ValueError("--spill is for runs in strips, which --exactness bitwise forbids")
        if self.max_inflight_mib < self.max_body_mib:
            raise ValueError("--max-inflight-mib must have room for one body of --max-body-mib")
        return self

    @property
    def address(self) -> str:
        """Where to listen: ``host``, if it was given, else every address of the machine where ``public``."""
        if self.public and "host" not in self.model_fields_set:
            return "0.0.0.0"  # noqa: S104 - what --public asks for, and only with keys
        return self.host

    @property
    def cloud_routes(self) -> Cloud | None:
        """The conventions of the cloud that runs the server."""
        return None if self.cloud is None else cloud_named(self.cloud)

    @property
    def pairing_folder(self) -> PairingFolder | None:
        """The certificate and the keys of a server that pairs."""
        return PairingFolder(self.pairing_dir or default_folder()) if self.pairing else None

    @property
    def key_file(self) -> Path | None:
        """The file of keys: the one that was given, else the one for pairing; None if no key is needed."""
        return self.pairing_folder.keys if self.keys is None and self.pairing_folder else self.keys

    @property
    def certificate(self) -> tuple[Path, Path] | None:
        """The files with the certificate and its key: those that were given, else those for pairing."""
        if self.tls_cert is not None and self.tls_key is not None:
            return self.tls_cert, self.tls_key
        folder = self.pairing_folder
        return None if folder is None else (folder.certificate, folder.private_key)

    @property
    def limits(self) -> Limits:
        """Limits of one request."""
        return Limits(
            self.max_body_mib * MIB,
            self.max_pixels,
            self.max_video_pixels,
            self.max_batch,
            max_inflight_bytes=self.max_inflight_mib * MIB,
            body_pause_s=self.body_pause_s,
        )

    @property
    def listening(self) -> ListenOptions:
        """How the socket is served."""
        certificate, private_key = self.certificate or (None, None)
        return ListenOptions(
            ConnectionLimits(
                max_connections=self.max_connections,
                max_head_bytes=self.max_head_kib * 1024,
                head_timeout_s=self.head_timeout_s,
                body_pause_s=self.body_pause_s,
                max_unread_bytes=self.max_inflight_mib * MIB,
            ),
            grace_s=self.grace_s,
            tls_cert=certificate,
            tls_key=private_key,
            trusted_proxies=self.trusted_proxies,
        )

    @property
    def queue_limits(self) -> QueueLimits:
        """Limits of the queue for the device."""
        return QueueLimits(self.queue_limit, self.queue_work_s, self.queue_mib * MIB)

    @property
    def async_job_limits(self) -> AsyncJobLimits:
        """Limits of async jobs, which are kept on disk with a spool, else in memory."""
        kept_bytes = self.jobs_mib * MIB if self.spool is None else int(self.spool_gib * 1024 * MIB)
        return AsyncJobLimits(self.jobs_limit, kept_bytes, self.job_ttl_s)


def refuse_unknown_variables() -> None:
    """Raise HybridgeError for a ``HYBRIDGE_…`` variable that no setting reads; it names the nearest known one."""
    refuse_unknown(Settings.model_fields)
