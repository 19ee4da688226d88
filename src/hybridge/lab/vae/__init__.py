"""``hybridge bench vae``: the exact engine beside its rivals, round by round, under the roof that the machine sets.

Arguments ─runner→ record ─report, plot→ tables, Markdown and a picture
"""
