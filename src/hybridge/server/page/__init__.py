"""The page that a browser gets at ``/``: files without a build step that use the public API alone.

``static`` holds the page itself.  :mod:`.site` serves it.
"""
