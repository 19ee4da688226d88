"""``hybridge lab advise`` and ``hybridge.optimize``: which techniques to take, and one call that applies them.

``presets`` holds ordered stacks as data; ``optimize`` applies one to a pipeline and shows what it did
(``proving``, ``optimised``); ``advice`` weighs ``options`` for a card, a pipeline and a server (``network``),
and writes the lines of Python (``snippet``).

It must never recommend anything without saying why.
"""
