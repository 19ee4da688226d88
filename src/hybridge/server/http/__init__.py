"""HTTP in and out: requests become jobs, results become responses.

Never waits for the device itself: that is :mod:`..scheduling`.
"""
