/* The numbers of the guest protocol, version 1; their meaning is in docs/protocol.md.
 *
 * `src/novasandbox/guest/protocol.py` says the same for the host, and a test compares the two. */
#pragma once

#define PROTOCOL_VERSION 1
#define MAX_PAYLOAD 65536
#define HEADER_SIZE 12
#define OFFSET_SIZE 8
#define MAX_FRAME (HEADER_SIZE + MAX_PAYLOAD)
#define ATTACH_MAGIC "NOVA-ATT"
#define NONCE_SIZE 16
#define DEFAULT_WINDOW 262144
#define MIN_WINDOW 16384
#define MAX_WINDOW 4194304
#define MAX_STREAMS 1024
#define MAX_FINISHED 64
#define PORT_NAME "org.novasandbox.agent"
#define VSOCK_PORT 52

enum frame_type {
    FRAME_PAD = 0x00,
    FRAME_HELLO = 0x01,
    FRAME_ATTACH = 0x02,
    FRAME_ATTACHED = 0x03,
    FRAME_GOAWAY = 0x04,
    FRAME_REQUEST = 0x10,
    FRAME_STATE = 0x11,
    FRAME_REPLY = 0x12,
    FRAME_RELEASE = 0x13,
    FRAME_CANCEL = 0x14,
    FRAME_RESUME = 0x15,
    FRAME_DETACH = 0x16,
    FRAME_DATA = 0x20,
    FRAME_END = 0x21,
    FRAME_CREDIT = 0x22,
};

enum operation_number {
    OP_PING = 1,
    OP_CONFIGURE = 2,
    OP_METRICS = 3,
    OP_CLOCK = 4,
    OP_ENTROPY = 5,
    OP_SHUTDOWN = 6,
    OP_EXEC = 10,
    OP_SIGNAL = 11,
    OP_RESIZE = 12,
    OP_PROCESSES = 13,
    OP_READ = 20,
    OP_WRITE = 21,
    OP_STAT = 22,
    OP_LIST = 23,
    OP_MKDIR = 24,
    OP_RENAME = 25,
    OP_REMOVE = 26,
    OP_CHMOD = 27,
    OP_SYMLINK = 28,
    OP_READLINK = 29,
    OP_WATCH = 30,
    OP_TRUNCATE = 31,
    OP_UTIME = 32,
    OP_CHOWN = 33,
    OP_CONNECT = 40,
};

enum field_tag {
    TAG_VERSION = 1,
    TAG_MIN_VERSION = 2,
    TAG_BOOT_ID = 3,
    TAG_WINDOW = 4,
    TAG_BUILD = 5,
    TAG_NEXT_STREAM = 6,
    TAG_RECEIVED = 7,
    TAG_FIRST1 = 8,
    TAG_FIRST2 = 9,
    TAG_HOSTNAME = 10,
    TAG_USER = 11,
    TAG_CWD = 12,
    TAG_ENV = 13,
    TAG_CLOCK = 14,
    TAG_ENTROPY = 15,
    TAG_MACHINE_ID = 16,
    TAG_MEMORY_RESERVE = 17,
    TAG_MESSAGE = 18,
    TAG_ARG = 20,
    TAG_CLEAR_ENV = 21,
    TAG_TIMEOUT = 22,
    TAG_PTY = 23,
    TAG_ROWS = 24,
    TAG_COLS = 25,
    TAG_STDIN = 26,
    TAG_BACKGROUND = 27,
    TAG_NAME = 28,
    TAG_MORE = 29,
    TAG_PID = 30,
    TAG_EXIT = 31,
    TAG_SIGNAL = 32,
    TAG_TIMED_OUT = 33,
    TAG_OOM = 34,
    TAG_DURATION = 35,
    TAG_CPU_USEC = 36,
    TAG_STAGE = 37,
    TAG_TARGET = 38,
    TAG_TREE = 39,
    TAG_STREAM = 40,
    TAG_STARTED = 41,
    TAG_PATH = 50,
    TAG_TARGET_PATH = 51,
    TAG_OFFSET = 52,
    TAG_SIZE = 53,
    TAG_MODE = 54,
    TAG_APPEND = 55,
    TAG_CREATE_PARENTS = 56,
    TAG_FOLLOW = 57,
    TAG_PARENTS = 58,
    TAG_RECURSIVE = 59,
    TAG_KIND = 60,
    TAG_UID = 61,
    TAG_GID = 62,
    TAG_MTIME = 63,
    TAG_INODE = 64,
    TAG_IS_DIR = 65,
    TAG_LOST = 66,
    TAG_PORT = 70,
    TAG_HOST = 71,
    TAG_MEM_TOTAL = 80,
    TAG_MEM_AVAILABLE = 81,
    TAG_DISK_TOTAL = 82,
    TAG_DISK_USED = 83,
    TAG_PROCESSES = 84,
    TAG_UPTIME_USEC = 85,
    TAG_LOAD = 86,
    TAG_NET_RX = 87,
    TAG_NET_TX = 88,
    TAG_OOM_KILLS = 89,
    TAG_CPUS = 90,
};

enum entry_kind { KIND_FILE = 1, KIND_DIRECTORY = 2, KIND_LINK = 3, KIND_OTHER = 4 };

enum change_kind {
    CHANGE_CREATED = 1,
    CHANGE_MODIFIED = 2,
    CHANGE_REMOVED = 3,
    CHANGE_RENAMED_FROM = 4,
    CHANGE_RENAMED_TO = 5,
    CHANGE_ATTRIBUTES = 6,
    CHANGE_CLOSED = 7,
};
