"""THE CATALOGUE OF TECHNIQUES: what makes a pipeline smaller or faster, applied, proven and undone.

``technique.py`` says what a row is, ``pipeline_context.py`` what it works on, ``evidence.py`` how it shows that
it took effect, ``stack.py`` which rows go together and in which order.  The other files are the rows, a family
a file, and ``catalogue.py`` puts them in one table.  What a row requires of a context is data beside its other
facts, and ``requirements.py`` reads it: a row that cannot run here is still a row, which says why, and what lives
in its place.

Nothing here measures time and nothing prints: :mod:`..studies` does.
"""
