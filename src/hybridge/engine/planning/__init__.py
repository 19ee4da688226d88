"""Plan how a program fits in memory and which algorithm each op uses: arithmetic on shapes, without a device.

No code here uses a tensor.
"""
