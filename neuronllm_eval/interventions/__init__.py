"""A condition's name becomes factors, and these become scores under all conditions.

Read first: `conditions.py`.
"""
