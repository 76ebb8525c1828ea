"""Many finished runs become one table, side by side or ranked, in every format.

Read first: `compare.py`; a row and where it comes from: `rows.py`.
"""
