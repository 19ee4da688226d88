"""Runs a program as its plan says, in strips of rows.

Decides nothing that :mod:`..planning` could have decided.
"""
