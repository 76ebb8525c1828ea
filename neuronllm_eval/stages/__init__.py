"""One function per stage of a run: identify, validate, verify, explain.

Read first: `identify.py`.
"""
