/*
 * agent_protocol.h: what the agent in a Linux guest and hostd say to each other, over the virtio-console port
 * `hostd.agent`. Little-endian. docs/agent-protocol.md says when and why; guestlib/linux/protocol.py holds the same numbers.
 */
#ifndef AGENT_PROTOCOL_H
#define AGENT_PROTOCOL_H

#include <stdint.h>

#define AGENT_PORT "hostd.agent"
#define AGENT_VERSION 1
#define AGENT_SYNC "hostd-agent-sync"   /* 16 bytes before HELLO and before WELCOME: where a session begins */
#define AGENT_SYNC_SIZE 16
#define AGENT_MAX_PAYLOAD 65536         /* bytes of a frame's payload */
#define AGENT_WINDOW 262144             /* bytes that each direction of a new stream may send */
#define AGENT_MAX_STREAMS 32            /* open at a time */

/* A frame: this, `length` bytes, and the session's number again (4 bytes). */
struct agent_frame {
    uint32_t length;
    uint32_t stream;                    /* 0: the session itself */
    uint8_t type;
    uint8_t zero[3];
};
#define AGENT_MARK_SIZE 4

enum agent_type {
    /* either way */
    AGENT_DATA = 1,                     /* bytes: standard input, a copy's records */
    AGENT_EOF = 2,                      /* no more of them */
    AGENT_CREDIT = 3,                   /* u32: so many more bytes may come on this stream */
    AGENT_PING = 4,                     /* any bytes, up to 64 */
    AGENT_PONG = 5,                     /* the same ones */
    AGENT_ERROR = 6,                    /* struct agent_error and text: ends the stream, or (stream 0) the session */

    /* host to guest */
    AGENT_HELLO = 16,                   /* struct agent_hello */
    AGENT_EXEC = 17,                    /* struct agent_exec and strings: opens a stream */
    AGENT_SIGNAL = 18,                  /* u32: to the command's process group */
    AGENT_RESIZE = 19,                  /* u16 rows, u16 columns */
    AGENT_CANCEL = 20,                  /* kill the command, forget the copy; EXIT or ERROR still comes */
    AGENT_PUT = 21,                     /* struct agent_copy and strings: opens a stream */
    AGENT_GET = 22,                     /* the same */
    AGENT_SHUTDOWN = 23,                /* struct agent_shutdown */
    AGENT_RESULT_TAKEN = 24,            /* nothing: the host knows the result, the guest may go */
    AGENT_BECOME = 25,                  /* struct agent_become and strings: the guest goes on from a template, as this one */

    /* guest to host */
    AGENT_WELCOME = 32,                 /* struct agent_welcome and strings */
    AGENT_STARTED = 33,                 /* u32: process id */
    AGENT_STDOUT = 34,                  /* bytes */
    AGENT_STDERR = 35,                  /* bytes */
    AGENT_EXIT = 36,                    /* struct agent_exit: ends the stream */
    AGENT_DONE = 37,                    /* struct agent_done: the copy is complete; ends the stream */
    AGENT_RESULT = 38,                  /* struct agent_exit: of the guest's own command */
    AGENT_BYE = 39,                     /* u32, as in agent_shutdown: the guest goes down now */
    AGENT_BECAME = 40                   /* nothing: it is the guest that it was to become, as far as that could be done */
};

struct agent_hello {
    uint32_t version;
    uint32_t session;                   /* random; closes every frame from here on, this one included */
};

#define AGENT_IS_INIT 1                 /* the agent is PID 1 */
#define AGENT_HAS_COMMAND 2             /* the guest has a command of its own, and a RESULT will come */

struct agent_welcome {                  /* then zero-terminated: the guest's name, cluster, kernel release */
    uint32_t version;
    uint32_t flags;
};

#define AGENT_EXEC_TTY 1                /* a terminal for all three; `rows` and `columns` count */
#define AGENT_EXEC_NO_STDIN 2           /* standard input is /dev/null */
#define AGENT_EXEC_CLEAN_ENV 4          /* only the variables given, not the agent's own (PATH, HOME, TERM) beneath them */

struct agent_exec {                     /* then zero-terminated: working directory (empty: /), argv, environment */
    uint32_t flags;
    uint16_t rows;
    uint16_t columns;
    uint32_t uid;
    uint32_t gid;
    uint16_t argc;
    uint16_t envc;
};

struct agent_exit {
    uint32_t status;                    /* 0..255; 128 + signal if one killed it */
    uint32_t signal;                    /* or 0 */
};

#define AGENT_COPY_EXACT 1              /* PUT: to `path` itself, even where that is a directory */
#define AGENT_COPY_OWNER 2              /* PUT: set the records' uid and gid (else: the agent's own) */

struct agent_copy {                     /* then zero-terminated: path (absolute); PUT: name, for a path that is a directory */
    uint32_t flags;
};

struct agent_done {
    uint64_t files;                     /* files, directories and symbolic links copied */
    uint64_t bytes;                     /* in files */
    uint64_t skipped;                   /* GET: sockets, devices and pipes that were left out */
};

#define AGENT_POWER_OFF 0
#define AGENT_REBOOT 1

struct agent_shutdown {
    uint32_t how;
    uint32_t grace_ms;                  /* between TERM and KILL */
};

#define AGENT_SEED 32

struct agent_become {                   /* then zero-terminated, in turn: a file of /run/hostd, and what it holds from now on */
    uint64_t real_ns;                   /* the time, as Unix has it */
    uint8_t seed[AGENT_SEED];           /* random */
};

struct agent_error {                    /* then a sentence, UTF-8, not terminated */
    uint32_t code;                      /* errno, or EPROTO */
};

/*
 * A copy's bytes are records: this, `path_size` bytes of path, `target_size` bytes of a symbolic link's target, `size` bytes
 * of a file. The path is relative to what is copied; that itself has the empty path and comes first. Parents come before
 * what is in them. EOF stands behind the last record.
 */
struct agent_record {
    uint8_t kind;
    uint8_t zero[3];
    uint32_t mode;                      /* permission bits, 07777 */
    uint32_t uid;
    uint32_t gid;
    int64_t mtime_ns;
    uint64_t size;
    uint16_t path_size;
    uint16_t target_size;
    uint32_t zero2;
};

enum agent_record_kind { AGENT_FILE = 1, AGENT_DIRECTORY = 2, AGENT_SYMLINK = 3 };

#define AGENT_MAX_PATH 4095

_Static_assert(sizeof(struct agent_frame) == 12, "the layout is fixed");
_Static_assert(sizeof(struct agent_exec) == 20, "the layout is fixed");
_Static_assert(sizeof(struct agent_record) == 40, "the layout is fixed");

#endif
