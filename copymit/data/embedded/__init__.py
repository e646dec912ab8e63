"""Data that ship inside the package, with licences and the scripts that made it."""
