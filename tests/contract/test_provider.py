"""What every provider promises (core/hypervisor.py), asked of each that is installed."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from novasandbox.core import provider_choice
from novasandbox.core.hypervisor import (
    MEMORY,
    STATE,
    BaseHypervisor,
    Machine,
    MachineSpec,
    SandboxConfig,
)
from novasandbox.core.preparation import prepare
from novasandbox.errors import BootFailed, VmmCrashed
from novasandbox.guest.channel import Channel
from novasandbox.guest.client import Guest
from novasandbox.guest.launch import Launch
from novasandbox.guest.processes import Processes
from waiting import is_gone, until

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module", params=provider_choice.names())
async def provider(request: pytest.FixtureRequest, qemu: str) -> BaseHypervisor:
    """Each installed provider; one that cannot run here fails with what would mend it."""
    hypervisor = provider_choice.load(request.param)
    probe = await hypervisor.probe()
    assert probe.usable, f"{probe.reason}. {probe.fix}"
    return hypervisor


@pytest.fixture(scope="module")
async def spec(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MachineSpec]:
    """A machine like that of a sandbox with default settings."""
    config = SandboxConfig()
    with await prepare(config) as prepared:
        run_dir = tmp_path_factory.mktemp("contract")
        yield MachineSpec(
            id="contract",
            run_dir=run_dir,
            kernel=prepared.kernel,
            initramfs=prepared.initramfs,
            rootfs=prepared.rootfs,
            scratch_base=prepared.scratch,
            scratch_mib=config.disk_mib,
            disk=run_dir / "first.qcow2",
            vcpus=1,
            memory_mib=256,
            hold_fds=prepared.hold_fds,
        )


def channel_to(machine: Machine, *, takeover: bool = False) -> Channel:
    return Channel(machine.dial, holder=b"contract-holder-", takeover=takeover)


async def test_a_probe_says_what_runs_and_why(provider: BaseHypervisor) -> None:
    probe = await provider.probe()
    assert probe.accelerator
    assert probe.version
    assert probe.reason


async def test_findings_have_a_reason_and_failures_a_mending(provider: BaseHypervisor) -> None:
    findings = await asyncio.to_thread(provider.findings)
    assert findings
    for finding in findings:
        assert finding.what
        assert finding.why
        assert finding.state != "fail" or finding.fix


async def test_a_machine_lives_is_paused_adopted_and_gone(
    provider: BaseHypervisor, spec: MachineSpec
) -> None:
    machine = await provider.boot(spec)
    channel = channel_to(machine)
    try:
        async with asyncio.timeout(100):
            await channel.open(60)
            await Guest(channel, spec.id).ping()
        await machine.pause()
        used = (await machine.metrics()).cpu_seconds
        assert used > 0
        await machine.resume()
        await Guest(channel, spec.id).ping()
        await channel.close()
        record = machine.record()
        await machine.let_go()

        machine = await provider.adopt(spec.run_dir, record)
        assert machine.record() == record
        channel = channel_to(machine, takeover=True)
        await channel.open(30)
        await Guest(channel, spec.id).ping()
        await channel.close()
    finally:
        pid = machine.pid
        await machine.kill()
        await machine.kill()
    assert is_gone(pid)
    assert await machine.wait()
    assert isinstance(machine.console(), bytes)
    with pytest.raises(VmmCrashed):
        await machine.metrics()
    with pytest.raises(VmmCrashed):
        await provider.adopt(spec.run_dir, record)


async def test_a_machine_ends_with_its_owner_unless_it_may_outlive_him(
    provider: BaseHypervisor, spec: MachineSpec
) -> None:
    for outlives in (False, True):
        owner_end, our_end = os.pipe()
        machine = await provider.boot(replace(spec, owner_fd=owner_end))
        os.close(owner_end)
        if outlives:
            machine.outlive_owner()
            await asyncio.sleep(0.2)
        os.close(our_end)
        try:
            if not outlives:
                await until(lambda pid=machine.pid: is_gone(pid), within=5)
            else:
                await asyncio.sleep(1)
                assert not is_gone(machine.pid)
        finally:
            await machine.kill()


async def test_a_boot_that_cannot_be_leaves_nothing(
    provider: BaseHypervisor, spec: MachineSpec, tmp_path: Path
) -> None:
    broken = tmp_path / "kernel"
    broken.write_bytes(b"this is no kernel")
    descriptors = len(os.listdir("/proc/self/fd"))
    # A provider notices at once, or its machine ends by itself.
    with contextlib.suppress(BootFailed):
        machine = await provider.boot(replace(spec, kernel=broken, run_dir=tmp_path))
        assert await machine.wait()
        await machine.kill()
        assert is_gone(machine.pid)
    await until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors)


async def _ready(machine: Machine, *, takeover: bool = False) -> Channel:
    channel = channel_to(machine, takeover=takeover)
    async with asyncio.timeout(100):
        await channel.open(90)
    return channel


async def _shell(channel: Channel, script: str) -> str:
    launch = Launch(("/bin/sh", "-c", script), user="root")
    return (await Processes(channel, "contract").run(launch, None, check=True)).stdout


def _folder(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir()
    return folder


async def test_a_saved_machine_lives_on_in_copies_and_copies_of_copies(
    provider: BaseHypervisor, spec: MachineSpec, tmp_path: Path
) -> None:
    booted, first, second = (_folder(tmp_path, name) for name in ("booted", "first", "second"))
    spec = replace(spec, run_dir=booted, disk=booted / "zero.qcow2")
    async with contextlib.AsyncExitStack() as stack:

        async def opened(machine: Machine, *, takeover: bool) -> Channel:
            stack.push_async_callback(machine.kill)
            channel = await _ready(machine, takeover=takeover)
            stack.push_async_callback(channel.close)
            return channel

        async def saved(machine: Machine, folder: Path, layer: Path) -> None:
            await machine.pause()
            await machine.save(folder)
            await machine.ready_layer(layer)
            await machine.freeze_disk(layer)
            assert (await machine.disk_layers())[-1] == layer.stem
            await machine.resume()

        machine = await provider.boot(spec)
        channel = await opened(machine, takeover=False)
        # Not synced: it lies in the guest's page cache, and in part on its disk.
        await _shell(channel, "echo one >/one; dd if=/dev/urandom of=/big bs=1M count=8; touch /a")
        sums = await _shell(channel, "sync; sha256sum /big; echo two >/two; date +%s")
        await saved(machine, _folder(booted, "saved"), booted / "one.qcow2")
        await _shell(channel, "rm /one; echo parent >/two; echo mine >/big; sync")

        memory = booted / "saved" / MEMORY
        assert memory.stat().st_size == spec.memory_mib << 20
        child_spec = replace(
            spec, run_dir=first, disk=first / "two.qcow2", layers=(booted / "zero.qcow2",)
        )
        copy = await provider.restore(child_spec, booted / "saved" / STATE, memory)
        child = await opened(copy, takeover=True)
        assert await _shell(child, "cat /one /two") == "one\ntwo\n"
        assert (await _shell(child, "sha256sum /big")).split()[0] == sums.split()[0]
        await _shell(child, "echo child >/two; echo three >/three")
        await saved(copy, _folder(first, "saved"), first / "three.qcow2")
        # Only what has changed since the template was written anew.
        assert not (first / "saved" / MEMORY).exists()
        written = (first / "saved" / STATE).stat().st_size
        assert written < (memory.stat().st_blocks * 512) // 2

        grandchild_spec = replace(
            spec,
            run_dir=second,
            disk=second / "four.qcow2",
            layers=(booted / "zero.qcow2", first / "two.qcow2"),
        )
        grandchild = await provider.restore(grandchild_spec, first / "saved" / STATE, memory)
        last = await opened(grandchild, takeover=True)
        assert await _shell(last, "cat /one /two /three") == "one\nchild\nthree\n"
        assert (await _shell(last, "sha256sum /big")).split()[0] == sums.split()[0]
        # Copies are merged each for itself, and while they run.
        assert set(await grandchild.disk_layers()) == {"zero", "two", "four"}
        await grandchild.merge_disk("zero", speed=64 << 20)
        assert await grandchild.disk_layers() == ("zero", "four")
        await grandchild.merge_disk(None)
        assert await grandchild.disk_layers() == ("four",)
        await _shell(last, "echo 3 >/proc/sys/vm/drop_caches")
        assert await _shell(last, "cat /one /two /three") == "one\nchild\nthree\n"
        assert (await _shell(last, "sha256sum /big")).split()[0] == sums.split()[0]
        assert set(await copy.disk_layers()) == {"zero", "two", "three"}
        assert await _shell(channel, "cat /two /big") == "parent\nmine\n"
        assert await _shell(child, "cat /two /three") == "child\nthree\n"


async def test_a_state_that_does_not_fit_ends_the_machine(
    provider: BaseHypervisor, spec: MachineSpec, tmp_path: Path
) -> None:
    state = tmp_path / STATE
    state.write_bytes(b"this is no state")
    spec = replace(spec, run_dir=tmp_path, disk=tmp_path / "own.qcow2")
    machine = await provider.restore(spec, state, None)
    try:
        async with asyncio.timeout(20):
            assert await machine.wait()
    finally:
        await machine.kill()
    assert is_gone(machine.pid)


async def test_the_signature_of_a_machine_names_its_sizes(
    provider: BaseHypervisor, spec: MachineSpec
) -> None:
    own = await provider.signature(spec.kernel, 1, 256)
    assert own == await provider.signature(spec.kernel, 1, 256)
    assert own != await provider.signature(spec.kernel, 1, 512)
    assert own != await provider.signature(spec.kernel, 2, 256)
