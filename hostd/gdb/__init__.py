"""A debugger's view of a running guest: gdb's remote serial protocol, served in the guest's own process.

The protocol: "Debugging with GDB", appendix "GDB Remote Serial Protocol". Imported when a debugger is asked for.
"""
