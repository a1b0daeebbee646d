"""Measurements: what the hardware and the host's own means give, to hold the guests' figures against."""
