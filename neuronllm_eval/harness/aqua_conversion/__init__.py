"""Any multiple-choice task of the harness becomes an AQUA task.

Read first: `convert.py`.
"""
