"""THE DOOR AND THE WAITING LINE.

An ASGI application in front of a Backend.  Only :mod:`hybridge.server.local` touches the engine; everything else
here works with WireTensors and would serve another backend unchanged.
"""
