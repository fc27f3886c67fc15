"""Building what a guest boots from: kernel, initramfs and root file system."""
