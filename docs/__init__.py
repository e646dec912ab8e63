"""The manual: its pages, and what writes, draws and builds them."""
