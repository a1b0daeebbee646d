"""The virtual network: an Ethernet switch whose ports are rings in mapped memory.

See docs/network.md.
"""
