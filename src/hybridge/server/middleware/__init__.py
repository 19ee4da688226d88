"""ASGI middleware around every request: keys, origins of web pages, records, refusals during shutdown.

Never reads a body.
"""
