"""Compiled loops in C, and the Python that calls them.

Each loop has a twin in torch's operators, for machines without a compiler.
"""
