"""The core: sandboxes, templates, and the contract that every hypervisor fulfils."""
