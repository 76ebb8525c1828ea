"""Facts about a Hugging Face model: FFN layers, hooks, precision, digests, the Hub.

The only folder with knowledge of architectures.

Read first: `ffn_layers.py`.
"""
