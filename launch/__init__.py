"""Takes a run to a Cloud TPU slice or a GKE cluster, and a sweep to a table."""
