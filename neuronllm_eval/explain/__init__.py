"""What single neurons write, and what each does alone.

Read first: `evidence.py`.
"""
