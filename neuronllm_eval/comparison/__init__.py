"""Many runs become one table, ranked or not, in every format.

Read first: `comparability.py`.
"""
