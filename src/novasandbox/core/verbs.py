"""The verbs of a holder, by name: what other processes ask of it, and its own handle too."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from novasandbox.core import copying, creation, sleeping
from novasandbox.core.holder import Holder
from novasandbox.errors import InvalidRequest


async def perform(holder: Holder, name: str, arguments: dict[str, Any]) -> Any:
    """Do one of the holder's own verbs. Raises InvalidRequest for an unknown one."""
    match name:
        case "set_timeout":
            return await holder.lifetime.set(arguments["seconds"])
        case "pause":
            return await holder.pause()
        case "resume":
            return await holder.resume()
        case "kill":
            return await holder.kill()
        case "hibernate":
            return await sleeping.hibernate(holder)
        case "rollback":
            return await creation.rollback(holder, str(arguments["snapshot"]))
        case "snapshot":
            return asdict(await copying.snapshot(holder, arguments["name"]))
        case "fork":
            return [child.id for child in await creation.fork(holder, int(arguments["count"]))]
        case "metrics":
            return await holder.machine_metrics()
        case "expose":
            return await holder.expose(int(arguments["port"]), int(arguments["host_port"]))
        case "unexpose":
            return await holder.unexpose(int(arguments["port"]))
    raise InvalidRequest(f"the holder knows no verb {name!r}")
