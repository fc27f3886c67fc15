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
from novasandbox.core.hypervisor import BaseHypervisor, Machine, MachineSpec, SandboxConfig
from novasandbox.core.preparation import prepare
from novasandbox.errors import BootFailed, VmmCrashed
from novasandbox.guest.channel import Channel
from novasandbox.guest.client import Guest
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
        yield MachineSpec(
            id="contract",
            run_dir=tmp_path_factory.mktemp("contract"),
            kernel=prepared.kernel,
            initramfs=prepared.initramfs,
            rootfs=prepared.rootfs,
            scratch_base=prepared.scratch,
            scratch_mib=config.disk_mib,
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
