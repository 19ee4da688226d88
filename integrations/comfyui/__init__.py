"""hybridge's nodes for ComfyUI: VAEs and text encoders of a server, in the place of local ones.

* ``nodes``: what ComfyUI sees of each node; every other file works without its schemas
* ``vae``: an object for sockets of the type VAE
* ``latent_forms``: how ComfyUI has the latents of each VAE
* ``text``: text on a server → CONDITIONING
* ``clip``: an object for sockets of the type CLIP
* ``latents``: files of latents
* ``servers``: profiles, clients, and the facts about a server's models
* ``background``: requests that a node's thread waits for, with progress and interruption
* ``messages``: failures in one sentence, without addresses
"""

from .nodes import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
