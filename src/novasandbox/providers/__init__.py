"""Hypervisors, one file each; found through the entry points `novasandbox.providers`."""
