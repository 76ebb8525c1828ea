"""The command line: argv -> settings -> stages -> printed text; the only folder that prints.

Read first: `main.py`.
"""
