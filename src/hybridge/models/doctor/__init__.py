"""The doctor: what is wrong with latents, pixels or a request, named by a code and a sentence.

:mod:`.causes` lists all codes.  :mod:`.shapes` explains shapes, :mod:`.scaling` the factors of a request,
:mod:`.numbers` the numbers of latents and of pictures, :mod:`.bits` numbers that were read in the wrong dtype.
A cause that makes the result worthless is an error; one that may be meant is a warning.
Nothing is imported here, because :mod:`hybridge.models.layout` uses :mod:`.shapes`.
"""
