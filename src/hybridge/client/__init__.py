"""The client: call a hybridge server from Python.

:mod:`hybridge.protocol` defines the wire format; this package sends requests, retries where that is safe, and
converts answers to the caller's types.  It imports torch, NumPy and Pillow only for values of these libraries,
keeps no global state, and never puts a credential into an error message or a ``repr``.

* ``address``: a server's URL, and the credentials in it
* ``pairing``, ``discovery``: a profile from a link, and servers that announce themselves
* ``profiles``: servers that are stored under a name, with address, certificate and key
* ``load_balancer``: the choice of the next of several servers; arithmetic only
* ``retry``: the failures after which to retry, and the wait; arithmetic only
* ``transport_errors``: failures as errors that name the server
* ``conversion``, ``precision``: torch, NumPy and pictures ↔ the protocol's types
* ``prompts``: prompts and pictures → a request, and its answer → keyword arguments of a pipeline
* ``calls``: arguments, documented and checked once
* ``call_types``: the types of results for each combination of arguments
* ``flow_types``: the steps that a flow asks its driver to take
* ``flow``, ``preview``, ``prompt_flow``: every exchange with servers as a generator that does no I/O
* ``answer_limits``: the largest answer to a request, and the checks of an answer
* ``redaction``: servers' texts without credentials
* ``proxies``, ``tls``: the proxy and the certificates of a connection
* ``network``, ``async_network``: connections that end at a call's deadline
* ``transport``, ``client``, ``async_client``: the two drivers, blocking and async
* ``queue``: calls that overlap with the computation of the next input
* ``fallback``: the caller's own VAE, used when no server can answer
* ``compat``: diffusers' ``remote_decode`` and ``remote_encode``
* ``model_matching``: the model of a server that fits a pipeline
* ``remote_vae`` and ``pipelines``: a pipeline's VAE on a server; these two import torch and are not imported here
"""

from .async_client import AsyncClient
from .client import Client
from .compat import remote_decode, remote_encode
from .conversion import Kind
from .load_balancer import Breaker
from .preview import Picture, Preview
from .prompts import Embeddings, repeat_for_images
from .queue import Finished
from .reply import Reply, ServerWarning
from .retry import Retry

__all__ = [
    "AsyncClient",
    "Breaker",
    "Client",
    "Embeddings",
    "Finished",
    "Kind",
    "Picture",
    "Preview",
    "Reply",
    "Retry",
    "ServerWarning",
    "remote_decode",
    "remote_encode",
    "repeat_for_images",
]
