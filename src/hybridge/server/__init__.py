"""The server: admits requests, queues them fairly, and runs them on a backend.

Only the files called ``local_…`` know the engine and touch torch.
"""
