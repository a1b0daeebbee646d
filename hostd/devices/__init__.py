"""The devices of a Linux guest: a bus of ports and addresses, PCI, and one C file per device behind a thin Python face."""
