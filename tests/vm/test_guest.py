"""The guest itself is whole, whatever its image lacks and although it has no network."""

from __future__ import annotations

import asyncio
import time

import pytest

from novasandbox import Sandbox
from waiting import until

pytestmark = pytest.mark.vm


async def _python(sandbox: Sandbox, code: str) -> str:
    result = await sandbox.exec(["python3", "-c", code], timeout=60)
    assert result.exit_code == 0, result.stderr
    return result.stdout.strip()


async def test_localhost_is_there_by_name_and_in_both_families(sandbox: Sandbox) -> None:
    code = (
        "import socket\n"
        "for host in ('localhost', '127.0.0.1', '::1', socket.gethostname()):\n"
        "    family = socket.getaddrinfo(host, 0)[0][0]\n"
        "    server = socket.create_server((host, 0), family=family)\n"
        "    client = socket.create_connection((host, server.getsockname()[1]), timeout=10)\n"
        "    server.accept()[0].send(b'hi'); assert client.recv(2) == b'hi'\n"
        "print('ok')"
    )
    assert await _python(sandbox, code) == "ok"


async def test_there_is_no_way_out(sandbox: Sandbox) -> None:
    links = await sandbox.exec("ls /sys/class/net; cat /proc/net/route | tail -n +2")
    assert links.stdout.split() == ["lo"]
    async with asyncio.timeout(60):
        code = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=20)"
        result = await sandbox.exec(["python3", "-c", code])
    assert "unreachable" in result.stderr


async def test_a_pool_of_processes_works(sandbox: Sandbox) -> None:
    code = (
        "import multiprocessing as m\n"
        "if __name__ == '__main__':\n"
        "    with m.Pool(2) as pool: print(sum(pool.map(abs, [-1, -2, -39])))\n"
        "    q = m.Queue(); lock = m.Lock(); q.put(1); assert q.get() == 1\n"
    )
    await sandbox.files.write("pool.py", code)
    result = await sandbox.exec(["python3", "pool.py"], cwd="/home/user", timeout=60)
    assert (result.stdout, result.exit_code) == ("42\n", 0)


async def test_devices_and_places_that_programs_expect_are_there(sandbox: Sandbox) -> None:
    checks = (
        "set -e; echo x > /tmp/t; echo x > /dev/shm/t; rm /tmp/t /dev/shm/t;"
        "test $(stat -c %a /tmp) = 1777; test $(stat -c %a /dev/shm) = 1777;"
        "echo a | cat /dev/stdin; echo b > /dev/stdout; echo c > /dev/fd/1;"
        "cat /dev/fd/3 3<<E\nd\nE\n"
        "head -c 4 /dev/urandom >/dev/null; head -c 4 /dev/random > /dev/null;"
        "echo gone > /dev/null; head -c 2 /dev/zero | wc -c; test -c /dev/full; test -c /dev/tty;"
        "test -d /proc/1; test -d /sys/kernel; test -w /run || test -d /run; test -c /dev/ptmx"
    )
    result = await sandbox.exec(checks)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.split() == ["a", "b", "c", "d", "2"]


async def test_process_substitution_and_terminals_work(sandbox: Sandbox) -> None:
    result = await sandbox.exec(["bash", "-c", "diff <(echo 1) <(echo 1) && echo same"])
    assert result.stdout == "same\n"
    code = "import pty, os; pty.spawn(['sh', '-c', 'tty'])"
    assert (await _python(sandbox, code)).startswith("/dev/pts/")


async def test_its_clock_is_this_hosts(sandbox: Sandbox) -> None:
    before = time.time()
    there = float(await _python(sandbox, "import time; print(time.time())"))
    assert before - 2 < there < time.time() + 2


async def test_no_two_guests_share_an_identity(sandbox: Sandbox, own_sandbox: Sandbox) -> None:
    command = (
        "cat /etc/machine-id /proc/sys/kernel/random/boot_id; hostname;"
        "head -c 16 /dev/urandom | od -An -tx1"
    )
    one, other = [(await each.exec(command)).stdout.splitlines() for each in (sandbox, own_sandbox)]
    assert len(one) == len(other) == 4
    assert all(mine != yours for mine, yours in zip(one, other, strict=True))
    assert one[2] == "shared"
    assert other[2] == f"nova-{own_sandbox.id}"


async def test_its_settings_hold_for_commands_and_terminals_and_the_call_wins(
    qemu: str,
) -> None:
    settings = {"A": "box", "B": "box", "PATH": "/opt/own:/usr/bin:/bin"}
    async with Sandbox.create(env=settings, cwd="/tmp", user="root", name="set") as sandbox:
        show = "echo $A $B; pwd; id -un; echo $PATH; hostname"
        plain = (await sandbox.exec(show)).stdout.split()
        assert plain == ["box", "box", "/tmp", "root", "/opt/own:/usr/bin:/bin", "set"]
        terminal = await sandbox.start(show, pty=True)
        assert (await terminal.wait()).stdout.split() == plain
        own = await sandbox.exec(show, env={"B": "call"}, cwd="/usr", user="1000")
        assert own.stdout.split()[:4] == ["box", "call", "/usr", "user"]


async def test_root_cannot_take_the_agents_channel(sandbox: Sandbox) -> None:
    write = (
        "import os, glob\n"
        "for port in glob.glob('/dev/vport*'):\n"
        "    try: os.write(os.open(port, os.O_RDWR), bytes(100)); print('written')\n"
        "    except OSError as error: print(os.strerror(error.errno))\n"
    )
    result = await sandbox.exec(["python3", "-c", write], user="root")
    assert set(result.stdout.splitlines()) <= {"Device or resource busy"}
    assert (await sandbox.exec("echo on")).stdout == "on\n"


async def test_a_console_that_is_flooded_keeps_its_end_only(sandbox: Sandbox) -> None:
    flood = (
        "open('/proc/sys/kernel/printk_devkmsg', 'w').write('on\\n')\n"
        "log = open('/dev/kmsg', 'wb', buffering=0)\n"
        "for n in range(300): log.write(b'<0>' + b'flood ' * 150)\n"
        "log.write(b'<0>and the last\\n')\n"
    )
    await sandbox.exec(["python3", "-c", flood], user="root", timeout=100, check=True)

    async def has_all() -> bool:
        return (await sandbox.logs()).console.rstrip().endswith("and the last")

    await until(has_all)
    logs = await sandbox.logs()
    assert 65_000 < len(logs.console) <= 131_072
    assert sum(p.stat().st_size for p in sandbox._record.directory.glob("console.log*")) < 400_000


async def test_its_root_is_its_own(sandbox: Sandbox, own_sandbox: Sandbox) -> None:
    await own_sandbox.exec("rm -rf /usr/bin/python3* /etc/passwd", user="root", check=True)
    assert not await own_sandbox.files.exists("/usr/bin/python3")
    assert (await sandbox.exec(["python3", "-c", "print(1)"])).stdout == "1\n"
