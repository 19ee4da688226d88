"""THE DOOR AND THE QUEUE.

Admits requests, queues them fairly, and has them run by a backend.  Never touches torch, except in
:mod:`.local_backend`, the one file that knows the engine.
"""
