"""What single neurons write and what each is worth alone.

Read first: `evidence.py`.
"""
