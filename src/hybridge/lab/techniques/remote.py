"""Parts that a hybridge server runs."""

from __future__ import annotations

from ...client.pipelines import connect
from ...client.remote_vae import RemoteVAE
from ...errors import RequestError
from .decoding import DecodeLog, decoded
from .pipeline_context import PipelineContext
from .technique import Applied, Missing, Proof, Technique


def _remote_vae(context: PipelineContext) -> Applied:
    former = context.pipe.vae
    place = former.device
    connection = connect(context.pipe, str(context.server))
    if place.type == "cuda":
        former.to("cpu")  # the connection keeps it for later; not where it would be in the way

    def judge(log: DecodeLog) -> Proof:
        is_remote = isinstance(log.vae, RemoteVAE)
        return Proof(is_remote and bool(log.asked), f"{len(log.asked)} decodes elsewhere: {connection}")

    def undo() -> None:
        connection.undo()
        if place.type == "cuda":
            former.to(place)

    return Applied(decoded(context, judge), undo)


def _why_no_server(context: PipelineContext) -> Missing | None:
    if context.server is None:
        return Missing("unavailable", "no server was named", instead="`hybridge serve` on a machine with room")
    return None


def _no_endpoint(context: PipelineContext) -> Applied:
    raise RequestError("no server reads prompts yet", hint="batch-processing")


ROWS: tuple[Technique, ...] = (
    Technique(
        name="remote-vae",
        title="Remote VAE",
        claim="A server decodes: no VAE in this machine's memory, and the network's time instead of the decoder's.",
        source="https://huggingface.co/docs/diffusers/hybrid_inference/vae_decode",
        exactness="rounding",
        stage="vae",
        apply=_remote_vae,
        why_missing=_why_no_server,
        group="vae",
    ),
    Technique(
        name="remote-text",
        title="Remote text encoders",
        claim="A server reads the prompt: no text encoder in this machine's memory.",
        source="https://huggingface.co/docs/diffusers/hybrid_inference/overview",
        exactness="rounding",
        stage="offload",
        apply=_no_endpoint,
        why_missing=lambda _: Missing(
            "unavailable", "the server has no endpoint for prompts yet", instead="batch-processing"
        ),
    ),
)
