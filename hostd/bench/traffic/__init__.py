"""Frames through a forwarder, as fast as it takes them: the network benchmark's clients, whose loops are C."""
