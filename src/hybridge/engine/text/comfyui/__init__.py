"""Text embeddings as ComfyUI makes them, from the same encoders that pipelines' ``encode_prompt`` uses.

* ``prompt_weights``: a text with parentheses → pieces and their weights
* ``tokens``: pieces → chunks of token ids with weights
* ``towers``: chunks → hidden states and a pooled vector of one encoder
* ``chat``: a text in a template → hidden states of a language model
* ``encoding``: a request → the tensors of a CONDITIONING

:mod:`hybridge.models.comfyui_text` has the facts about each family of models.
"""

from .encoding import encode_as_comfyui, read_comfy_inputs

__all__ = ["encode_as_comfyui", "read_comfy_inputs"]
