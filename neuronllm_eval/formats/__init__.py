"""Values to and from files, text and tables; knows nothing of neurons.

Read first: `plain_files.py`.
"""
