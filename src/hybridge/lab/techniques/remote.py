"""Parts that a hybridge server runs."""

from __future__ import annotations

from collections.abc import Callable

from ...client.pipelines import connect
from ...client.remote_vae import RemoteVAE
from .decoding import DecodeLog, decoded
from .pipeline_context import PipelineContext
from .technique import Proof, Technique, Undo, Witness, row


def _remote_vae(context: PipelineContext, undo: Undo) -> Callable[[], Witness]:
    former = context.pipe.vae
    connection = connect(context.pipe, str(context.server))
    place = former.device
    if place.type == "cuda":
        former.to("cpu")  # the connection keeps it for later; not where it would be in the way
        undo.by(former.to, place)
    undo.by(connection.undo)

    def judge(log: DecodeLog) -> Proof:
        is_remote = isinstance(log.vae, RemoteVAE)
        return Proof(is_remote and bool(log.asked), f"{len(log.asked)} decodes elsewhere: {connection}")

    return decoded(context, judge)


ROWS: tuple[Technique, ...] = (row("remote-vae", _remote_vae),)
