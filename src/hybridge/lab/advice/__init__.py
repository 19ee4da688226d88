"""ADVICE: which techniques to take for a purpose, and one call that puts them in force.

``presets.py`` holds ordered stacks as data, ``optimize.py`` applies one to a pipeline and shows what it did.
"""
