"""``hybridge bench serve``: servers under load, one at a time, beside the engine without any.

``cases`` is what is asked; ``servers`` starts a server for each ``competitors`` entry; ``load_generator`` sends
requests; ``runner`` takes turns and keeps the ``record``; ``report`` makes tables and Markdown of it.

It must never give a competitor other settings than its documentation does.
"""
