"""The numbers of the guest protocol, version 1; their meaning is in docs/protocol.md.

`native/agent/protocol.h` says the same for the agent, and a test compares the two.
"""

from __future__ import annotations

from enum import IntEnum

VERSION = 1
MAX_PAYLOAD = 65_536
HEADER_SIZE = 12
ATTACH_MAGIC = b"NOVA-ATT"
DEFAULT_WINDOW = 262_144
MAX_WINDOW = 4_194_304
MAX_STREAMS = 1_024
PORT_NAME = "org.novasandbox.agent"
VSOCK_PORT = 52
MAX_ERRNO = 4_095

STDIN, STDOUT, STDERR = 0, 1, 2
"""The byte channels of a stream: into the guest, and two out of it."""


class Errno(IntEnum):
    """Error numbers of the guest's kernel; this host's may be others."""

    E2BIG = 7
    EAGAIN = 11
    ECONNREFUSED = 111
    ESTALE = 116


class Frame(IntEnum):
    """The first byte of a frame."""

    PAD = 0x00
    HELLO = 0x01
    ATTACH = 0x02
    ATTACHED = 0x03
    GOAWAY = 0x04
    REQUEST = 0x10
    STATE = 0x11
    REPLY = 0x12
    RELEASE = 0x13
    CANCEL = 0x14
    RESUME = 0x15
    DETACH = 0x16
    DATA = 0x20
    END = 0x21
    CREDIT = 0x22


class Op(IntEnum):
    """What a REQUEST asks for."""

    PING = 1
    CONFIGURE = 2
    METRICS = 3
    CLOCK = 4
    ENTROPY = 5
    SHUTDOWN = 6
    EXEC = 10
    SIGNAL = 11
    RESIZE = 12
    PROCESSES = 13
    READ = 20
    WRITE = 21
    STAT = 22
    LIST = 23
    MKDIR = 24
    RENAME = 25
    REMOVE = 26
    CHMOD = 27
    SYMLINK = 28
    READLINK = 29
    WATCH = 30
    TRUNCATE = 31
    UTIME = 32
    CHOWN = 33
    CONNECT = 40


class Tag(IntEnum):
    """What a field holds."""

    VERSION = 1
    MIN_VERSION = 2
    BOOT_ID = 3
    WINDOW = 4
    BUILD = 5
    NEXT_STREAM = 6
    RECEIVED = 7
    FIRST1 = 8
    FIRST2 = 9
    HOSTNAME = 10
    USER = 11
    CWD = 12
    ENV = 13
    CLOCK = 14
    ENTROPY = 15
    MACHINE_ID = 16
    MEMORY_RESERVE = 17
    MESSAGE = 18
    ARG = 20
    CLEAR_ENV = 21
    TIMEOUT = 22
    PTY = 23
    ROWS = 24
    COLS = 25
    STDIN = 26
    BACKGROUND = 27
    NAME = 28
    MORE = 29
    PID = 30
    EXIT = 31
    SIGNAL = 32
    TIMED_OUT = 33
    OOM = 34
    DURATION = 35
    CPU_USEC = 36
    STAGE = 37
    TARGET = 38
    TREE = 39
    STREAM = 40
    STARTED = 41
    PATH = 50
    TARGET_PATH = 51
    OFFSET = 52
    SIZE = 53
    MODE = 54
    APPEND = 55
    CREATE_PARENTS = 56
    FOLLOW = 57
    PARENTS = 58
    RECURSIVE = 59
    KIND = 60
    UID = 61
    GID = 62
    MTIME = 63
    INODE = 64
    IS_DIR = 65
    LOST = 66
    PORT = 70
    HOST = 71
    MEM_TOTAL = 80
    MEM_AVAILABLE = 81
    DISK_TOTAL = 82
    DISK_USED = 83
    PROCESSES = 84
    UPTIME_USEC = 85
    LOAD = 86
    NET_RX = 87
    NET_TX = 88
    OOM_KILLS = 89
    CPUS = 90
    FAILURE = 0x8000
    """Only from a holder to another process: the error to raise, as JSON."""
