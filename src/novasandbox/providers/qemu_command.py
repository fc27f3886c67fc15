"""QEMU's command line for one machine: no default devices, no network.

A machine is booted from its kernel, or restored from what `qemu_state` saved of another.
Both have the same devices in the same order: what was saved fits no other machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from novasandbox.guest.protocol import PORT_NAME

KERNEL, INITRAMFS, ROOTFS, SCRATCH_BASE = "/kernel", "/initramfs", "/rootfs", "/scratch"
"""Where the shared files stand in the machine's jail."""

FORMAT = 1
"""Of a saved machine; raised when its devices, or how it is saved, change."""

MEMORY, DISK, BOTTOM = "memory", "disk", "scratch-base"
"""QEMU's names of the guest's memory, of its own disk, and of what lies below all its layers."""

_DISK_SET, _CONSOLE_SET, _LAYERS_SET = 1, 2, 100

# A full host disk is an error in the guest; QEMU's default stops the guest without a word.
_REPORTED = ",werror=report,rerror=report"

SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
"""QEMU's own seccomp filter: it starts nothing and gains nothing."""


@dataclass(frozen=True, slots=True)
class Files:
    """The shared files, under the names by which QEMU sees them.

    memory: what a restored machine's memory starts as; None: nothing but zeros.
    """

    kernel: str = KERNEL
    initramfs: str = INITRAMFS
    rootfs: str = ROOTFS
    scratch_base: str = SCRATCH_BASE
    memory: str | None = None


@dataclass(frozen=True, slots=True)
class Descriptors:
    """Descriptors that QEMU inherits: two listening sockets, its disk, its console.

    disk_reader: the disk once more, to read only. layers: what lies between the scratch base
    and that disk, the oldest first. state: what a restored machine starts from; None: it boots.
    """

    qmp: int
    agent: int
    disk: int
    disk_reader: int
    console: int
    layers: tuple[int, ...] = ()
    state: int | None = None


@dataclass(frozen=True, slots=True)
class Hardware:
    """What differs from host to host. arch: `x86_64` or `aarch64`."""

    arch: str
    accelerator: str
    vcpus: int
    memory_mib: int
    tsc_khz: int | None = None
    seccomp: bool = True


def command(
    hardware: Hardware,
    files: Files,
    fds: Descriptors,
    disk_node: str,
    layer_nodes: tuple[str, ...] = (),
) -> list[str]:
    """The arguments, the program itself left out.

    disk_node: the name of its own layer. layer_nodes: those of the layers below it, the
    oldest first; else they are called by their numbers.
    """
    return [
        "-nodefaults",
        "-no-user-config",
        # A panicking guest must end, not boot again in a circle.
        "-no-reboot",
        *("-display", "none"),
        *(("-sandbox", SANDBOX) if hardware.seccomp else ()),
        *_memory(hardware, files),
        *_machine(hardware.arch),
        *("-accel", hardware.accelerator),
        *("-cpu", cpu_model(hardware)),
        *("-smp", str(hardware.vcpus)),
        *("-m", f"{hardware.memory_mib}M"),
        *(_boot(hardware, files) if fds.state is None else _restore(fds.state)),
        *_control(fds, hardware.accelerator),
        *_disks(files, fds, disk_node, layer_nodes),
        *_console(hardware.arch, fds.console),
    ]


def _memory(hardware: Hardware, files: Files) -> Iterator[str]:
    size = f"size={hardware.memory_mib}M"
    if files.memory is None:
        # Shared, so that it can be read through the descriptor once it is to be saved.
        yield from ("-object", f"memory-backend-memfd,id={MEMORY},{size},share=on")
    else:
        file = f"mem-path={files.memory},share=off"
        yield from ("-object", f"memory-backend-file,id={MEMORY},{size},{file}")


def _boot(hardware: Hardware, files: Files) -> Iterator[str]:
    yield from ("-kernel", files.kernel)
    yield from ("-initrd", files.initramfs)
    yield from ("-append", kernel_arguments(hardware))


def _restore(state: int) -> Iterator[str]:
    # What is saved names its machine by our own key, not by QEMU's.
    yield from ("-global", "migration.send-configuration=off")
    yield from ("-incoming", f"fd:{state}")


def _machine(arch: str) -> Iterator[str]:
    if arch != "x86_64":
        yield from ("-M", f"virt,gic-version=max,memory-backend={MEMORY}")
        return
    yield from ("-M", f"pc,hpet=off,usb=off,vmport=off,memory-backend={MEMORY}")
    # Nothing is ever plugged into a running machine, and under emulation the kernel takes
    # 0.15 s to interpret what ACPI says about 31 slots into which something could be.
    for hotplug in ("acpi-root-pci-hotplug", "acpi-pci-hotplug-with-bridge-support"):
        yield from ("-global", f"PIIX4_PM.{hotplug}=off")


def cpu_model(hardware: Hardware) -> str:
    """The CPU that the guest sees, as QEMU names it."""
    if hardware.accelerator != "tcg":
        return "host"
    if hardware.arch != "x86_64":
        return "max,pauth-impdef=on"
    # QEMU 7.2 leaves garbage in EFLAGS after cmpxchg16b, on which kernel 6.12 panics. With
    # erms or fsrm in sight, kernel and libc copy with `rep movsb`, which TCG does byte by byte:
    # a file then comes out of the guest at a third of the speed.
    return "max,-cx16,-erms,-fsrm"


def kernel_arguments(hardware: Hardware) -> str:
    """What the guest's kernel is told.

    Mitigations stay on, under emulation too: no boot or exec was measured to be quicker
    without them.
    """
    words = ["quiet", "panic=-1", "random.trust_cpu=on", "cryptomgr.notests"]
    # Those of Debian's security modules that need no policy, which nobody would load here.
    words += ["lsm=landlock,yama"]
    if hardware.accelerator == "tcg":
        # QEMU keeps translations by virtual address: with addresses at random every exec
        # translates the loader and libc again (three times the time), and code pages with
        # many translations take seconds to reuse. It weakens nobody but the guest.
        words += ["norandmaps"]
    if hardware.arch == "x86_64":
        # The early console needs no driver: a probe for UARTs costs more than it gives.
        words += ["earlyprintk=ttyS0,keep", "8250.nr_uarts=0", "reboot=t"]
        words += ["i8042.noaux", "i8042.nokbd", "i8042.nopnp"]
        if hardware.accelerator == "tcg":
            # Else the kernel waits 40 ms for ten ticks of an emulated timer, and panics
            # where a busy host brings them too late ("IO-APIC + timer doesn't work").
            words += ["no_timer_check"]
        if hardware.tsc_khz and hardware.accelerator == "tcg":
            # Under TCG the guest reads the host's TSC. Told its rate, it need not measure
            # it against an emulated timer, which goes wrong on a busy host.
            words += ["tsc=reliable", f"tsc_early_khz={hardware.tsc_khz}"]
    else:
        words += ["earlycon=pl011,0x9000000", "keep_bootcon"]
    return " ".join(words)


def _control(fds: Descriptors, accelerator: str) -> Iterator[str]:
    # Listening sockets, so that a new holder can connect after the old one has died.
    yield from ("-chardev", f"socket,id=qmp,fd={fds.qmp},server=on,wait=off")
    yield from ("-mon", "chardev=qmp,mode=control")
    yield from ("-chardev", f"socket,id=agent,fd={fds.agent},server=on,wait=off")
    serial = "virtio-serial-pci,max_ports=2"
    # Under TCG an ioeventfd only wakes another thread for what the vCPU's own could do at
    # once: without it a round trip takes half the time, and files move a third faster.
    yield from ("-device", f"{serial},ioeventfd=off" if accelerator == "tcg" else serial)
    yield from ("-device", f"virtserialport,chardev=agent,name={PORT_NAME}")


def _disks(
    files: Files, fds: Descriptors, node: str, layer_nodes: tuple[str, ...]
) -> Iterator[str]:
    # No name in the jail leads to any layer. The second descriptor is for the time when
    # another one lies on this (qemu_disk.py).
    yield from ("-add-fd", f"fd={fds.disk},set={_DISK_SET},opaque={writer_of(node)}")
    yield from ("-add-fd", f"fd={fds.disk_reader},set={_DISK_SET},opaque={node}")
    yield from _blockdev("root", _file(files.rootfs, read_only=True), driver="raw", read_only=True)
    yield from _blockdev(
        BOTTOM, _file(files.scratch_base, read_only=True), driver="raw", read_only=True
    )
    below = BOTTOM
    names = layer_nodes or tuple(f"layer-{number}" for number, _ in enumerate(fds.layers))
    for number, (name, layer) in enumerate(zip(names, fds.layers, strict=True)):
        fdset = _LAYERS_SET + number
        yield from ("-add-fd", f"fd={layer},set={fdset},opaque={name}")
        file = _file(f"/dev/fdset/{fdset}", read_only=True)
        yield from _blockdev(name, file, driver="qcow2", read_only=True, backing=below)
        below = name
    # Read-only or not as its layer is, which changes when another one is laid on this.
    own = _file(f"/dev/fdset/{_DISK_SET}", read_only=None)
    yield from _blockdev(node, own, driver="qcow2", backing=below, discard="unmap")
    yield from ("-device", f"virtio-blk-pci,drive=root{_REPORTED}")
    yield from ("-device", f"virtio-blk-pci,id={DISK},drive={node}{_REPORTED}")


def writer_of(node: str) -> str:
    """What marks the descriptor through which a layer is written."""
    return f"{node}-writer"


def _file(name: str, *, read_only: bool | None) -> dict[str, Any]:
    # Many machines share the read-only files, and only we hand out the others.
    data = {"driver": "file", "filename": name, "locking": "off"}
    return data if read_only is None else {**data, "read-only": read_only}


def _blockdev(node: str, file: dict[str, Any], **options: Any) -> Iterator[str]:
    data = {"node-name": node, "file": file}
    data |= {name.replace("_", "-"): value for name, value in options.items()}
    yield from ("-blockdev", json.dumps(data))


def _console(arch: str, descriptor: int) -> Iterator[str]:
    # A pipe that the supervisor reads into a file of bounded size.
    yield from ("-add-fd", f"fd={descriptor},set={_CONSOLE_SET}")
    yield from ("-chardev", f"file,id=console,path=/dev/fdset/{_CONSOLE_SET},append=on")
    if arch == "x86_64":
        yield from ("-device", "isa-serial,chardev=console")
    else:
        yield from ("-serial", "chardev:console")
