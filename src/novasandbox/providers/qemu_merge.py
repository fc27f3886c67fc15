"""Merging the layers of a disk: QEMU copies what some of them hold into the one that it writes.

The job is QEMU's `block-stream`. It writes the topmost layer only, with what the guest would
read there anyway: killed at any moment it leaves a disk that holds the same as before, over
the layers of before. They are taken out once all of it is copied.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from novasandbox.errors import OperationFailed, VmmCrashed
from novasandbox.providers.qemu_command import BOTTOM
from novasandbox.providers.qemu_disk import layer_nodes, node_in_sets, top_node
from novasandbox.providers.qmp import Qmp

_JOB = "merge"
_LOOK_EVERY = 0.05
_CALL_OFF_DEADLINE = 10.0
# What is named as lying below in the layer's header, which nobody reads. QEMU's own choice
# spells out all that lies below, and fails above 1023 characters: ten layers.
_BELOW = "below"


async def merge(qmp: Qmp, onto: str | None, speed: int | None) -> None:
    """Let the topmost layer hold all that lies above the node `onto`; see `Machine.merge_disk`.

    onto: None: above what lies at the bottom.
    """
    job: dict[str, Any] = {
        "job-id": _JOB,
        "device": await top_node(qmp),
        "base-node": onto or BOTTOM,
        "backing-file": _BELOW,
        # Else a job that has failed is gone like one that has not.
        "auto-dismiss": False,
    }
    try:
        await qmp.execute("block-stream", job | ({"speed": speed} if speed else {}))
        await _finished(qmp)
    except BaseException:
        with contextlib.suppress(OperationFailed, VmmCrashed):
            await call_off(qmp)
        raise


async def _finished(qmp: Qmp) -> None:
    while True:
        job = await _job(qmp)
        if job is None:
            raise OperationFailed("the disk's layers were not merged", why="QEMU lost the job")
        if job["status"] == "concluded":
            break
        await asyncio.sleep(_LOOK_EVERY)
    await qmp.execute("job-dismiss", {"id": _JOB})
    if "error" in job:
        raise OperationFailed("the disk's layers were not merged", why=str(job["error"]))


async def call_off(qmp: Qmp) -> None:
    """End the job, where there is one; nothing is copied any more when this returns.

    Raises OperationFailed, VmmCrashed.
    """
    try:
        async with asyncio.timeout(_CALL_OFF_DEADLINE):
            while (job := await _job(qmp)) is not None:
                if job["status"] == "concluded":
                    await qmp.execute("job-dismiss", {"id": _JOB})
                    return
                # In the moment between it may have come to its end.
                with contextlib.suppress(OperationFailed):
                    await qmp.execute("job-cancel", {"id": _JOB})
                await asyncio.sleep(0.005)
    except TimeoutError as error:
        raise OperationFailed(
            "QEMU does not stop merging the disk's layers",
            why="its storage takes more than 10 s to answer",
        ) from error


async def _job(qmp: Qmp) -> dict[str, Any] | None:
    jobs = await qmp.execute("query-jobs")
    return next((dict(each) for each in jobs if each["id"] == _JOB), None)


async def drop_unused(qmp: Qmp) -> list[str]:
    """Close the layers that the disk stands on no more; gives the nodes of the others.

    The topmost is the last of them. Raises OperationFailed, VmmCrashed.
    """
    top = await top_node(qmp)
    below = [node for node in await layer_nodes(qmp) if node != top]
    while dropped := [node for node in below if await _dropped(qmp, node)]:
        # One that was in use by these may be so no more.
        below = [node for node in below if node not in dropped]
    return [*below, top]


async def _dropped(qmp: Qmp, node: str) -> bool:
    """Whether a node was not in use, and is gone."""
    try:
        await qmp.execute("blockdev-del", {"node-name": node})
    except OperationFailed:
        return False
    for fdset in await node_in_sets(qmp, node):
        await qmp.give_back(fdset)
    return True
