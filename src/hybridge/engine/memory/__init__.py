"""Device and host memory: allocation, reuse, release, and storage for activations outside the budget."""
