"""The host's side of the agent in Linux guests (docs/agent-protocol.md)."""
