"""How the embedded demo model and its questions were made.

Read first: `train.py`.
"""
