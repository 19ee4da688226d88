"""Execute a program in strips of rows, as its plan says.

This package makes no decision that :mod:`..planning` could have made.
"""
