"""The devices of a Linux guest: buses, PCI, and one C file per device behind a thin Python face."""
