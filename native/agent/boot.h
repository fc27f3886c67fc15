/* From the kernel's initramfs to a whole guest. */
#pragma once

/* Loads the modules, mounts the root and moves into it. */
void boot(void);
/* What belongs into every guest, whatever its image has left out. */
void furnish(void);
