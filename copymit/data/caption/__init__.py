"""Captions made by a model, and captions files made for other programs."""
