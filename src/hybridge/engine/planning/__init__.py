"""How a program fits in memory and which algorithm each op takes: arithmetic on shapes, without a device.

Never touches a tensor.
"""
