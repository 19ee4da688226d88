"""What a VAE computes, as data: ops, the flat program of them, and how diffusers' modules become one.

Never runs anything.
"""
