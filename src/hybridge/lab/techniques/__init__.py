"""THE CATALOGUE OF TECHNIQUES: what makes a pipeline smaller or faster, applied, proven and undone.

``technique.py`` says what a row is, ``pipeline_context.py`` what it works on, ``evidence.py`` how it shows that
it took effect, ``stack.py`` which rows go together and in which order.  Rows are data in ``catalogue.json``, which
names a function for each; the functions lie in the other files, a family a file.  ``requirements.py`` reads what a
row requires of a context: one that cannot run here is still a row, which says why, and what lives in its place.

Nothing here measures time and nothing prints: :mod:`..studies` does.
"""
