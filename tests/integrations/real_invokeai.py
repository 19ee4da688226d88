"""Runs the nodes in InvokeAI's own environment, in which the client is installed: by its loader and session runner.

``python real_invokeai.py NODES OUT PICTURE``: NODES is a folder of node packs, OUT gets the pictures and an outline
of what happened, PICTURE is encoded.  The profile ``desktop`` is in the environment.  Storage of pictures and the
events are stood in for; tensors, graphs, nodes and their contexts are InvokeAI's.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch
from invokeai.app.invocations.baseinvocation import InvocationRegistry
from invokeai.app.invocations.load_custom_nodes import load_custom_nodes
from invokeai.app.invocations.noise import NoiseInvocation
from invokeai.app.services.object_serializer.object_serializer_disk import ObjectSerializerDisk
from invokeai.app.services.session_processor.session_processor_default import DefaultSessionRunner
from invokeai.app.services.shared.graph import Edge, EdgeConnection, Graph, GraphExecutionState
from PIL import Image


class Pictures:
    """The service that keeps pictures: in files, without a database."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.workflows: list[str] = []

    def create(self, image: Image.Image, *, node_id: str, graph: str | None = None, **_: Any) -> Any:
        name = f"{len(self.workflows)}.png"
        image.save(self._folder / name)
        self.workflows.append(str(graph))
        return SimpleNamespace(image_name=name, width=image.width, height=image.height)

    def get_pil_image(self, name: str) -> Image.Image:
        return Image.open(self._folder / name)


def run(nodes: list[Any], edges: list[tuple[int, str, int, str]], services: Any) -> GraphExecutionState:
    """Runs a graph as a queue item; an edge is (from, its output, to, its input)."""
    graph = Graph()
    for node in nodes:
        graph.add_node(node)
    for source, output, target, name in edges:
        begin = EdgeConnection(node_id=nodes[source].id, field=output)
        graph.add_edge(Edge(source=begin, destination=EdgeConnection(node_id=nodes[target].id, field=name)))
    session = GraphExecutionState(graph=graph)
    item = SimpleNamespace(
        item_id=1, session=session, session_id=session.id, workflow=None, user_id="me", status="in_progress"
    )
    runner = DefaultSessionRunner()
    runner.start(services, Event())
    runner._run_session_loop(item)
    return session


def main(nodes: Path, out: Path, picture: Path) -> None:
    load_custom_nodes(nodes, logging.getLogger("nodes"))
    made = {kind: InvocationRegistry.get_invocation_for_type(kind) for kind in ("hybridge_l2i", "hybridge_i2l")}
    services = MagicMock()
    services.configuration = SimpleNamespace(
        node_cache_size=0, multiuser=False, offload_text_encoders_to_idle_gpus=False
    )
    services.tensors = ObjectSerializerDisk[torch.Tensor](out / "tensors", safe_globals=[torch.Tensor])
    services.images = pictures = Pictures(out)
    Image.open(picture).save(out / "photograph.png")
    said = services.events.emit_invocation_progress

    decode = made["hybridge_l2i"](id="decode", server="desktop", model="sdxl")
    noise = NoiseInvocation(id="noise", seed=5, width=96, height=64)
    session = run([noise, decode], [(0, "noise", 1, "latents")], services)
    found = list(session.results.values())
    torch.save(services.tensors.load(found[0].noise.latents_name), out / "noise.pt")

    encode = made["hybridge_i2l"](
        id="encode", image={"image_name": "photograph.png"}, server="desktop", model="sd-v1"
    )
    again = made["hybridge_l2i"](id="again", server="desktop", model="sd-v1")
    there = run([encode, again], [(0, "latents", 1, "latents")], services)
    latents = next(one.latents for one in there.results.values() if hasattr(one, "latents"))
    torch.save(services.tensors.load(latents.latents_name), out / "latents.pt")

    missing = made["hybridge_l2i"](id="missing", server="desktop", model="nobody")
    failed = run([noise, missing], [(0, "noise", 1, "latents")], services)
    refused = made["hybridge_l2i"](id="refused", server="http://me:a-secret@127.0.0.1", model="")
    address = run([noise, refused], [(0, "noise", 1, "latents")], services)
    document = {
        "sizes": [[one.width, one.height] for one in (found[1], *list(there.results.values()))],
        "messages": [call.kwargs["message"] for call in said.call_args_list],
        "errors": [list(failed.errors.values()), list(address.errors.values())],
        "workflows": pictures.workflows,
        "schema": made["hybridge_l2i"].model_json_schema(),
    }
    (out / "outline.json").write_text(json.dumps(document, default=str))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
