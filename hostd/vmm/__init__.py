"""One guest: its process, its virtual machine, the calls it makes, and the warm parent it is forked from."""
