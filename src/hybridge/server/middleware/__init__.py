"""ASGI middleware round every request: keys, origins of web pages, records, refusals during the shutdown.

Never reads a body.
"""
