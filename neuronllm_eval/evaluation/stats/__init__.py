"""Paired statistics; pure.

Read first: `paired_delta.py`.
"""
