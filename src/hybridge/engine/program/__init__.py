"""A VAE's computation as data: ops, the flat program of ops, and the lowering of diffusers' modules to a program.

No code here executes a program.
"""
