"""Models on many machines: a front keeps the queue, and replicas in a Ray cluster do the work."""
