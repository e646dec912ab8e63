"""The mitigations, one a file. Each holds `MITIGATIONS`, which `registry` finds."""
