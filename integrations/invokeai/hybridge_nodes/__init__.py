"""Nodes of InvokeAI that decode and encode at a hybridge server.

InvokeAI stores a workflow in each picture, and errors in its database, so both have the name of a profile, and no
address and no key.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from invokeai.invocation_api import (
    BaseInvocation,
    ImageField,
    ImageOutput,
    Input,
    InputField,
    InvocationContext,
    LatentsField,
    LatentsOutput,
    WithBoard,
    WithMetadata,
    invocation,
)

from hybridge import Client
from hybridge.errors import ClientError, HybridgeError

_ABOUT = {"tags": ["latents", "image", "vae", "hybridge"], "category": "latents", "version": "1.0.0"}
_SERVER = "Profile of a hybridge server"
_MODEL = "Model of the server; empty where the server is to infer it"


def client_of(profile: str) -> Client:
    """Return the client of a profile.

    Raises:
        ClientError: when there is none of this name.
    """
    if not profile or set(profile) & set(":/.@"):
        raise ClientError(
            "a node takes the name of a profile", expected="a name such as desktop, no address, no key"
        )
    return Client(profile)


@contextmanager
def calling(profile: str) -> Iterator[Client]:
    """Give the client of a profile, whose errors then name the profile in the place of addresses.

    Raises:
        RuntimeError: in the place of the client's errors.
    """
    with client_of(profile) as client:
        try:
            yield client
        except HybridgeError as error:
            name, text = f"the server {profile!r}", str(error)
            for part in re.findall(r"\w+://[^\s'\",;]+", f"{text} {client.server}"):
                text = text.replace(part, name).replace(urlsplit(part).netloc, name)
            raise RuntimeError(text) from None


@invocation("hybridge_l2i", title="Latents to Image - hybridge", **_ABOUT)
class HybridgeLatentsToImage(BaseInvocation, WithMetadata, WithBoard):
    """Decodes latents at a hybridge server."""

    latents: LatentsField = InputField(description="Latents of SD 1.5, SDXL or FLUX.1", input=Input.Connection)
    server: str = InputField(default="", description=_SERVER)
    model: str = InputField(default="", description=_MODEL)

    def invoke(self, context: InvocationContext) -> ImageOutput:
        latents = context.tensors.load(self.latents.latents_name)
        context.util.signal_progress("Decoding at the server")
        with calling(self.server) as client:
            image = client.decode(latents[:1], model=self.model or None, do_scaling=True)
        return ImageOutput.build(context.images.save(image=image))


@invocation("hybridge_i2l", title="Image to Latents - hybridge", **_ABOUT)
class HybridgeImageToLatents(BaseInvocation):
    """Encodes an image at a hybridge server."""

    image: ImageField = InputField(description="The image to encode")
    server: str = InputField(default="", description=_SERVER)
    model: str = InputField(default="", description=_MODEL)

    def invoke(self, context: InvocationContext) -> LatentsOutput:
        image = context.images.get_pil(self.image.image_name, mode="RGB")
        context.util.signal_progress("Encoding at the server")
        with calling(self.server) as client:
            latents = client.encode(image, model=self.model or None, do_scaling=True, kind="torch")
        name = context.tensors.save(tensor=latents)
        return LatentsOutput.build(latents_name=name, latents=latents, seed=None)
