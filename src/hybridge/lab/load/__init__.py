"""``hybridge bench serve``: servers under load, one at a time, beside the engine without any.

ServeArguments ─runner→ record ─report→ tables and Markdown
"""
