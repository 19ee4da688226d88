"""``hybridge lab estimate``: what a stack of techniques would take, without weights and without a GPU.

* ``shapes``: the pipelines at their real size, as data
* ``live_tensors``: counts live bytes and FLOPs of a forward on the meta device
* ``parts``: builds one part of a pipeline there, and runs it
* ``cost_table``: what was counted at the usual sizes, kept in a table so that no library has to be loaded for it
* ``effects``: what each technique changes, as data
* ``phases``: the arithmetic from all of these to the memory and the work of each phase
* ``correction``: what a measured record says of it
* ``guide``: the guide's figures beside ours

It must never need a GPU or a checkpoint.
"""
