"""Programs in C that send numbered messages as fast as they can: in guests, and in processes of the host."""
