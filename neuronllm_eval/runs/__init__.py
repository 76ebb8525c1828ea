"""What lies where in a run directory, typed and checked on reading.

Read first: `directory.py`.
"""
