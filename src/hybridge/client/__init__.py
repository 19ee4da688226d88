"""THE OTHER END: calling a hybridge server from Python.

What is on the wire is :mod:`hybridge.protocol`'s business; this room sends it, tries again where that is right,
and turns answers into what the caller works with.  It imports neither torch nor NumPy nor Pillow until a value of
theirs comes or goes, keeps no state outside its objects, and never puts a credential into an error message or a
``repr``.

* ``address``: where a server is, and the credentials in its URL
* ``load_balancer``: which of several servers is asked next; arithmetic only
* ``retry``: after which failure to try again, and when; arithmetic only
* ``transport_errors``: failures as errors that name the server
* ``conversion``, ``precision``: torch, NumPy and pictures ↔ the wire's nouns
* ``prompts``: prompts and pictures → a request, and its answer → keyword arguments of a pipeline
* ``calls``: arguments, documented and checked once
* ``call_types``: which type of result follows from which arguments
* ``flow_types``: what such a conversation asks of its driver
* ``flow``, ``preview``, ``prompt_flow``: every conversation as a generator that does no I/O
* ``answer_limits``: how large an answer to a request may be, and what is checked of it
* ``redaction``: texts of servers without credentials
* ``proxies``, ``tls``: through which proxy, and with which certificates
* ``network``, ``async_network``: connections that end when the call has to
* ``transport``, ``client``, ``async_client``: the two drivers, blocking and async
* ``queue``: calls that overlap with making the next input
* ``fallback``: a VAE of the caller's own, where no server can
* ``compat``: diffusers' ``remote_decode`` and ``remote_encode``
* ``model_matching``: what a pipeline needs, what a server says of its models, and which of them fits
* ``remote_vae`` and ``pipelines``: a pipeline's VAE that is on a server; these two know torch and are not imported
  here
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
