"""``hybridge lab report``: records become one page that a person enjoys reading, with Markdown and JSON beside it.

    files ─sources→ Sources ─findings, content→ Content ─writing, templates→ report.html, report.md, report.json

The page needs no network and no second file; English and Chinese are both in it.  This room must never measure
anything, nor import torch.
"""
