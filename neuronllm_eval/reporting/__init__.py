"""From the artifacts of one run to report.md and report.html; loads no model.

Read first: `write_reports.py`, then `sections.py`.
"""
