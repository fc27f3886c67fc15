"""What runs in the guest behind `run_code`: a server, and a process for each context.

It is sent to the guest as a zip and runs on whatever CPython is there, 3.8 or later, so it
imports the standard library and itself, and nothing else of the package.
"""
