"""Memory of the device and of the host: taken, reused, given back, and where activations lie outside a budget."""
