"""ADVICE: which techniques to take, for a purpose or for a card, and one call that puts them in force.

``presets.py`` holds ordered stacks as data, ``optimize.py`` applies one to a pipeline and shows what it did,
``adviser.py`` weighs them for a card, a pipeline and a server that may be there.
"""
