"""Images that guests boot: kernels, initramfs archives, root file systems."""
