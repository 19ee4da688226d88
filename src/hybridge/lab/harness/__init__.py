"""THE HARNESS: what every benchmark needs, whatever it measures.

* ``worker_process``: a fresh process for each measurement
* ``record``: the JSON file of a run, and whether two runs may be compared
* ``environment``: the machine and the libraries, as records name them
* ``measure``, ``memory``: seconds and peak bytes of a call, bytes of tensors
* ``typed``: JSON as the dataclasses that describe it
* ``stats``, ``tables``, ``plot``, ``templates``: medians and percentiles; tables, plots and pages as text

It must never know what is measured: techniques, models and servers belong to those who import it.
"""
