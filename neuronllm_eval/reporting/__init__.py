"""The artifacts of one run become text and pages; loads no model.

Read first: `report_markdown.py`.
"""
