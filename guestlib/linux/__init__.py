"""What runs inside a Linux guest: the agent, the init, `guestctl`, and the Python side of regions and channels."""
