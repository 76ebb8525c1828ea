"""Prompts become a score per neuron: integrated gradients, methods, the pass over questions.

Read first: `identify.py`.
"""
