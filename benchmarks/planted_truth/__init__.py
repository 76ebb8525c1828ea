"""Neurons with known roles are planted in the embedded model: which methods find them?

Read first: `plant.py`.
"""
