"""Scores and neuron sets as values and files; selection and overlap; pure.

Read first: `neuron_set.py`.
"""
