"""Frames, requests and answers over Unix sockets: how commands talk to a supervisor (docs/control-protocol.md)."""
