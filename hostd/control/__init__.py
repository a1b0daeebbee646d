"""How commands talk to a supervisor: frames, requests and answers. See docs/control-protocol.md."""
