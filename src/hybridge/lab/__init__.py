"""THE WORKBENCH: is it faster, does it fit, and is it still right?

Measures the engine beside its rivals and keeps what it saw.  Nothing depends on it but the command line; the
process that asks never touches a device, so that the one that is asked has the machine to itself.
"""
