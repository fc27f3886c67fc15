"""First steps: run code, stream output, move files, look at metrics, see an error."""

import asyncio
import tempfile
from pathlib import Path

from novasandbox import Sandbox
from novasandbox.errors import CommandFailed, OperationTimeout


async def main() -> None:
    """Everything below happens in a microVM of its own, which is gone at the end."""
    async with Sandbox.create(memory_mib=256, timeout=120) as sandbox:
        info = await sandbox.info()
        print(f"sandbox {info.id} runs on {info.provider} ({info.accelerator})")

        # A string goes through the guest's shell, a list is run as it is.
        result = await sandbox.exec("uname -sr; id -un; pwd")
        print(result.stdout, end="")
        result = await sandbox.exec(["python3", "-c", "print(6 * 7)"])
        print(f"6 * 7 = {result.stdout.strip()}, in {result.duration * 1000:.0f} ms")

        # Output arrives while the program runs.
        counting = "import time\nfor i in 1, 2, 3:\n    print(i, flush=True)\n    time.sleep(0.2)"
        process = await sandbox.start(["python3", "-c", counting])
        async for output in process:
            print(f"{output.stream}: {output.text.strip()}")
        print(f"it ended with {(await process.wait()).exit_code}")

        # Files go in and out whole, or as trees.
        await sandbox.files.write("data/numbers.txt", "3\n1\n2\n")
        await sandbox.exec("sort data/numbers.txt > data/sorted.txt", check=True)
        print("sorted:", (await sandbox.files.read_text("data/sorted.txt")).split())
        with tempfile.TemporaryDirectory() as folder:
            await sandbox.download("data", folder)
            print("downloaded:", sorted(path.name for path in Path(folder).iterdir()))

        metrics = await sandbox.metrics()
        used = metrics.guest.memory_total - metrics.guest.memory_available
        print(f"the guest uses {used >> 20} of {metrics.guest.memory_total >> 20} MiB")

        # Errors say what happened; the sandbox lives on.
        try:
            await sandbox.exec("echo broken >&2; exit 3", check=True)
        except CommandFailed as error:
            print(f"failed: {error}")
        try:
            await sandbox.exec("sleep 60", timeout=0.5)
        except OperationTimeout as error:
            print(f"timed out: {error}")


if __name__ == "__main__":
    asyncio.run(main())
