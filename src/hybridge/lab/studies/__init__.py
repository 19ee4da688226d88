"""``hybridge lab run``: what each technique of the catalogue does to a pipeline, measured.

``arguments`` is what is asked; ``runner`` asks, one fresh process for each configuration, and keeps the record;
``worker`` is that process, which loads the pipeline (``pipeline``) and puts it on the bench (``bench``), where
pictures are compared (``pictures``).

It must never know a technique by name, nor touch a device in the process that asks.
"""
