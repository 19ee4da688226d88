"""The process: sockets, connections and their limits, startup, shutdown, logs, metrics and traces.

Knows no job and no model.
"""
