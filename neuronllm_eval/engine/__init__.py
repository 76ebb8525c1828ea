"""Prompts and edits become option log-likelihoods or path integrals, exact up to rounding.

Read first: `interface.py`.
"""
