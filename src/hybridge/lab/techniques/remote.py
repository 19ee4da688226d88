"""Parts that a hybridge server runs."""

from __future__ import annotations

from ...client.pipelines import connect
from ...client.remote_vae import RemoteVAE
from .decoding import DecodeLog, decoded
from .pipeline_context import PipelineContext
from .technique import Applied, Missing, Proof, Technique, row


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


ROWS: tuple[Technique, ...] = (row("remote-vae", _remote_vae, _why_no_server),)
