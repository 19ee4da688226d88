"""Which job runs when: admission, costs, the fair queue, batches, the device's thread, and which models are loaded.

Knows no HTTP, and the engine only through a :class:`~.backend.Backend`.
"""
