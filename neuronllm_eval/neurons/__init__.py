"""What was found, as values and files: scores, neuron sets, selection, overlap; pure.

Read first: `neuron_set.py`.
"""
