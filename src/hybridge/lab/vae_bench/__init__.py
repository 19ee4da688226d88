"""``hybridge bench vae``: the exact engine beside its rivals, round by round.

``cases`` is what is asked; ``runner`` starts a fresh process (``worker``) for every measurement of ``rivals``
and of the ``roofline``; ``record`` is what is kept, and ``report`` shows it.

It must never keep a process between two measurements.
"""
