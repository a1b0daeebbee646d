"""Random accesses to memory in C: in guests, and in processes of the host."""
