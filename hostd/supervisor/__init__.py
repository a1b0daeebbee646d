"""The supervisor of one cluster: starts its guests, watches them, restarts them, and cleans up."""
