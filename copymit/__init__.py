"""Train text-to-image diffusion models, measure how they copy, and stop them."""

__version__ = "0.1.0"
