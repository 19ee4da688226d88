"""Kernels in C, and the Python that calls them.

Each has an equivalent in torch's operators, for machines without a compiler.
"""
