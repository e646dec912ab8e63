"""Moved to torch_layout; kept while other work lands."""
from copymit.models.torch_layout import load_torch_state, to_torch_state  # noqa: F401
