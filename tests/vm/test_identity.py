"""What makes one guest differ from every other, and from the one it is a copy of."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from novasandbox import Sandbox
from novasandbox.core import provider_choice
from novasandbox.core.hypervisor import MachineSpec, SandboxConfig
from novasandbox.core.preparation import prepare
from novasandbox.guest.channel import Channel
from novasandbox.guest.client import Guest
from novasandbox.guest.launch import Launch
from novasandbox.guest.processes import Processes
from support.tools import tool

pytestmark = pytest.mark.vm

BOOT_ID = "/proc/sys/kernel/random/boot_id"
GENERATION = "/run/nova/generation"
ENVIRONMENT = "/run/nova/environment"
# In /proc as the kernel makes it, without what the agent has bound over its files.
KERNELS_BOOT_ID = (
    "import ctypes, os\n"
    "libc = ctypes.CDLL(None)\n"
    "assert libc.unshare(0x20000) == 0 and libc.mount(b'p', b'/mnt', b'proc', 0, None) == 0\n"
    "print(open('/mnt/sys/kernel/random/boot_id').read(), end='')"
)


class RawGuest:
    """A machine that nobody has configured yet."""

    def __init__(self, channel: Channel) -> None:
        self._processes = Processes(channel, "raw")
        self.agent = Guest(channel, "raw")

    async def run(self, *argv: str, user: str | None = None) -> str:
        """What a command prints that ends well."""
        result = await self._processes.run(Launch(argv, user=user), None, False)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    async def bytes_of(self, path: str) -> str:
        return await self.run("od", "-An", "-v", "-tx1", path)


@pytest.fixture
async def bare(qemu: str, tmp_path: Path) -> AsyncIterator[RawGuest]:
    """A guest whose image lacks a host's name; its id and hosts are links, one to a device."""
    debugfs = tool("debugfs", "e2fsprogs")
    config = SandboxConfig()
    with await prepare(config) as prepared:
        rootfs = tmp_path / "rootfs.ext4"
        shutil.copyfile(prepared.rootfs, rootfs)
        rootfs.chmod(0o644)
        for command in (
            "rm /etc/hostname",
            "rm /etc/machine-id",
            "symlink /etc/machine-id /data/nowhere/machine-id",
            "rm /etc/hosts",
            "symlink /etc/hosts /dev/null",
        ):
            subprocess.run([debugfs, "-w", "-R", command, str(rootfs)], check=True)
        run_dir = tmp_path / "run"
        run_dir.mkdir()
        machine = await provider_choice.load("qemu").boot(
            MachineSpec(
                id="bare",
                run_dir=run_dir,
                kernel=prepared.kernel,
                initramfs=prepared.initramfs,
                rootfs=rootfs,
                scratch_base=prepared.scratch,
                scratch_mib=config.disk_mib,
                disk=run_dir / "disk.qcow2",
                vcpus=1,
                memory_mib=256,
                hold_fds=prepared.hold_fds,
            )
        )
        channel = Channel(machine.dial, holder=b"identity-holder-")
        try:
            await channel.open(60)
            yield RawGuest(channel)
        finally:
            await channel.close()
            await machine.kill()


async def test_its_boot_id_is_no_other_guests_and_not_the_kernels(
    sandbox: Sandbox, own_sandbox: Sandbox
) -> None:
    seen = []
    for each in (sandbox, own_sandbox):
        seen.append((await each.exec(["cat", BOOT_ID])).stdout)
        # Copies of one guest share it, and so it is not what is shown.
        kernels = await each.exec(["python3", "-c", KERNELS_BOOT_ID], user="root")
        assert kernels.exit_code == 0, kernels.stderr
        assert kernels.stdout not in seen
    assert seen[0] != seen[1]
    for line in seen:
        assert line[14] == "4"
        assert line[19] in "89ab"
        assert [len(part) for part in line.split("-")] == [8, 4, 4, 4, 13]
    write = await sandbox.exec(f"echo x > {BOOT_ID}", user="root")
    assert "Read-only" in write.stderr


async def test_its_names_are_right_from_the_start(own_sandbox: Sandbox) -> None:
    name = f"nova-{own_sandbox.id}"
    shown = await own_sandbox.exec("hostname; cat /etc/hostname; tail -1 /etc/hosts")
    assert shown.stdout == f"{name}\n{name}\n127.0.1.1\t{name}\n"
    own = (await own_sandbox.exec("cat /etc/machine-id")).stdout
    assert len(own) == 33
    assert int(own, 16)
    assert own != "0" * 32 + "\n"


async def test_its_generation_is_8_bytes_for_all_to_read(
    sandbox: Sandbox, own_sandbox: Sandbox
) -> None:
    command = f"stat -c '%s %a %U' {GENERATION}; od -An -tx8 {GENERATION}"
    one, other = [(await each.exec(command)).stdout.split("\n") for each in (sandbox, own_sandbox)]
    assert one[0] == other[0] == "8 444 root"
    assert one[1] != other[1]


async def test_its_settings_lie_in_a_file_of_the_users(qemu: str) -> None:
    settings = {"LONG": "x y\n=z", "PATH": "/opt/own:/usr/bin:/bin", "PWD": "no"}
    async with Sandbox.create(env=settings, cwd="/tmp") as sandbox:
        assert (await sandbox.exec(f"stat -c '%a %U' {ENVIRONMENT}")).stdout == "400 user\n"
        text = (await sandbox.exec(["cat", ENVIRONMENT])).stdout
        first, *rest, end = text.split("\0")
        assert (first, end) == ("PWD=/tmp", "")
        own = (await sandbox.exec(["env", "-0", "-u", "PWD"])).stdout
        assert rest == own.split("\0")[:-1]
        assert {"LONG=x y\n=z", "PATH=/opt/own:/usr/bin:/bin", "HOME=/home/user"} <= set(rest)
        assert (await sandbox.exec(["cat", ENVIRONMENT], user="nobody")).exit_code != 0


async def test_its_bound_files_can_be_edited_in_place_and_written(qemu: str) -> None:
    async with Sandbox.create(user="root") as sandbox:
        add = "echo '192.0.2.7 elsewhere' >> /etc/hosts; getent hosts elsewhere"
        assert "192.0.2.7" in (await sandbox.exec(add)).stdout
        await sandbox.files.write("/etc/hosts", "192.0.2.8 written\n", mode=0o640)
        shown = await sandbox.exec("cat /etc/hosts; stat -c %a /etc/hosts; ls -A /etc | grep nova")
        assert shown.stdout == "192.0.2.8 written\n640\n"


async def test_an_image_may_lack_what_is_bound_over(bare: RawGuest) -> None:
    assert await bare.bytes_of(GENERATION) == " 00 00 00 00 00 00 00 00\n"
    await bare.agent.configure(hostname="bare", user="user")
    assert await bare.run("cat", "/etc/hostname") == "bare\n"
    hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\tbare\n"
    assert await bare.run("cat", "/etc/hosts") == hosts
    assert len(await bare.run("cat", "/etc/machine-id")) == 33
    await bare.run("sh", "-c", "echo gone > /dev/null; test -c /dev/null")


async def test_configured_again_a_guest_is_another_and_keeps_its_settings(bare: RawGuest) -> None:
    await bare.agent.configure(hostname="a-long-name", user="user", cwd="/tmp", env={"A": "1"})
    edit = "echo '192.0.2.7 kept' >> /etc/hosts; echo 00000000 >> /etc/hostname"
    await bare.run("sh", "-c", edit, user="root")
    files = (BOOT_ID, GENERATION, "/etc/machine-id", "/etc/hostname")
    inodes = await bare.run("stat", "-c", "%i", *files)
    before = [await bare.bytes_of(path) for path in files]
    settings = await bare.run("sh", "-c", "pwd; env; id -un"), await bare.run("cat", ENVIRONMENT)

    await bare.agent.configure(hostname="short")
    after = [await bare.bytes_of(path) for path in files]
    assert all(one != other for one, other in zip(before, after, strict=True))
    assert await bare.run("stat", "-c", "%i", *files) == inodes
    assert await bare.run("cat", "/etc/hostname") == "short\n"
    hosts = (await bare.run("cat", "/etc/hosts")).splitlines()
    assert hosts[2:] == ["192.0.2.7 kept", "127.0.1.1\tshort"]
    assert settings == (
        await bare.run("sh", "-c", "pwd; env; id -un"),
        await bare.run("cat", ENVIRONMENT),
    )

    await bare.agent.configure(hostname="short", env={"B": "2"})
    entries = (await bare.run("cat", ENVIRONMENT)).split("\0")
    assert entries[0] == "PWD=/tmp"
    assert "B=2" in entries
    assert "A=1" not in entries
