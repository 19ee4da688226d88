"""Servers that are not ours, each set up as its documentation says: a process of its own for each."""
