"""THE STUDY: what each technique of the catalogue does to a pipeline, measured.

``arguments.py`` is what is asked; ``runner.py`` asks, one fresh process for each configuration, and keeps the
record; ``worker.py`` is that process, which loads the pipeline (``pipeline.py``) and puts it on the bench
(``bench.py``), where memory is counted (``peak.py``) and pictures are compared (``pictures.py``).

Nothing here knows a technique by name, and the process that asks touches no device.
"""
