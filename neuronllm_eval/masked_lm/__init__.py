"""lm_eval's Hugging Face model with a neuron mask.

Read first: `model.py`.
"""
