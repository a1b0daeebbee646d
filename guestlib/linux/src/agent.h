/*
 * agent.h: the agent's parts. One thread, one loop (agent.c): a port with a session on it, streams on that, and the
 * duties of PID 1. Nothing in it blocks for long but copies' reading and writing of files.
 */
#ifndef LINUX_AGENT_H
#define LINUX_AGENT_H

#include "agent_protocol.h"

#include <dirent.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Room for a few frames; a reply to a frame takes at most OUT_RESERVE, and data leave that free. */
#define OUT_SIZE (4 * AGENT_MAX_PAYLOAD)
#define OUT_RESERVE 8192
#define IN_SIZE (AGENT_MAX_PAYLOAD + 4096)
#define CHUNK 32768                 /* most bytes of one data frame that is sent */

/* ---- port.c: where the host is ----------------------------------------------------------------------------------------- */

struct port {
    const char *name;   /* of the virtio-console port; or */
    int listener;       /* a listening socket (tests), else -1 */
    int fd;             /* -1: none yet */
    int events;         /* epoll set with fd, edge-triggered: a port with no host would be ready all the time */
    int readable, writable;
    uint64_t next_try_ns, give_up_ns;
};

void port_init(struct port *port, const char *name, int listener);
/* Looks for the port if it isn't open. Returns ns until the next try, or UINT64_MAX. */
uint64_t port_open(struct port *port);
/* Takes note of what epoll says. */
void port_events(struct port *port);
/* Bytes, 0 for none at the moment, -1 when the host is gone (now; it may come back). */
ssize_t port_read(struct port *port, void *data, size_t room);
ssize_t port_write(struct port *port, const void *data, size_t size);
/* Gives up a connection that its host has closed. A virtio port stays open. */
void port_hung_up(struct port *port);

/* ---- stream.c ---------------------------------------------------------------------------------------------------------- */

struct session;

/* A command. Descriptors are -1 when closed. */
struct exec {
    pid_t pid;
    int in, out, err;
    int tty, eof, exited;
    int unheld;         /* nobody has the terminal open: it would be ready all the time */
    uint32_t status, signal;
    char *input;        /* AGENT_WINDOW bytes, made with the first of them */
    size_t input_start, input_end;
};

/* A copy that comes in: record after record. */
struct put {
    uint32_t flags;
    int base;                       /* directory that the copy goes to, by the name `leaf` */
    int top;                        /* the copy itself, once it is known to be a directory */
    int first;                      /* no record has come yet */
    char leaf[AGENT_MAX_PATH + 1];
    struct agent_record record;
    size_t have;                    /* bytes of record and names that have come */
    char names[2 * AGENT_MAX_PATH + 2];
    int file, folder;               /* the file being written, and where */
    char partial[40];               /* its name until it is complete */
    char last[AGENT_MAX_PATH + 1];  /* its name then */
    uint64_t left;
    struct agent_done done;
};

#define GET_DEPTH 128

/* A copy that goes out: a walk. */
struct get {
    DIR *folders[GET_DEPTH];
    size_t lengths[GET_DEPTH];      /* of `path` in each */
    int depth;
    char path[AGENT_MAX_PATH + 1];
    char head[sizeof(struct agent_record) + 2 * (AGENT_MAX_PATH + 1)];
    size_t head_start, head_end;
    int file;
    uint64_t left;
    char *bytes;                    /* of a file that has no size of its own (/proc) */
    size_t at;
    int top;                        /* what is copied, before the walk begins */
    int error;                      /* to be told when what was read before has been sent */
    struct agent_done done;
};

enum stream_kind { STREAM_FREE, STREAM_EXEC, STREAM_PUT, STREAM_GET };

struct stream {
    struct session *session;
    uint32_t id;
    enum stream_kind kind;
    uint64_t credit;    /* bytes that may be sent */
    uint32_t granted;   /* bytes that may still come */
    uint32_t owed;      /* bytes passed on, to be granted again */
    union {
        struct exec exec;
        struct put *put;
        struct get *get;
    };
};

/* ---- session.c: frames ------------------------------------------------------------------------------------------------- */

struct session {
    struct port *port;
    int open;
    uint32_t number;
    char in[IN_SIZE], out[OUT_SIZE];
    size_t in_start, in_end, out_start, out_end;
    struct stream streams[AGENT_MAX_STREAMS];
};

/* Reads what has come, acts on it, and writes what is due. Returns whether anything moved. */
int session_pump(struct session *session);
/* Acts on the bytes that lie in `in`; for session_pump and the fuzzer. */
int session_parse(struct session *session);
/* Ends the session: its commands, its copies, what is still to be sent. */
void session_end(struct session *session);
/* Writes what is due; whether anything moved. */
int session_flush(struct session *session);
size_t session_room(struct session *session);
/* Queues a frame. There must be room: session_room() >= size + 16. */
void session_send(struct session *session, uint8_t type, uint32_t stream, const void *payload, size_t size);
/* Space for the payload of a data frame of up to `size` bytes; session_sent tells how many there are. */
char *session_payload(struct session *session);
void session_sent(struct session *session, uint8_t type, uint32_t stream, size_t size);

/* Bytes that the stream may send now: as far as credit and room go. */
size_t stream_may_send(struct stream *stream);
void stream_passed_on(struct stream *stream, size_t size);
/* Ends a stream with a sentence. */
__attribute__((format(printf, 3, 4))) void stream_fail(struct stream *stream, int code, const char *format, ...);
/* Frees what it has; what it started ends. */
void stream_free(struct stream *stream);

/* ---- exec.c ------------------------------------------------------------------------------------------------------------ */

void exec_open(struct stream *stream, const char *payload, size_t size);
void exec_data(struct stream *stream, const char *data, size_t size);
void exec_eof(struct stream *stream);
void exec_signal(struct stream *stream, uint32_t number);
void exec_resize(struct stream *stream, uint16_t rows, uint16_t columns);
/* Adds what it waits for to `fds` (room for 3); how many. */
int exec_wants(struct stream *stream, struct pollfd *fds);
int exec_pump(struct stream *stream);
/* `pid` ended: whether it was this stream's. */
int exec_reaped(struct stream *stream, pid_t pid, int status);
/* HUP now, KILL soon. */
void exec_abandon(struct stream *stream);
void exec_kill_abandoned(int all);
void exec_forget(pid_t pid);
uint64_t exec_next_kill_ns(void);

/* Starts a program with standard descriptors `fds`: its pid, or -errno with *step set to what failed. */
pid_t spawn(char **argv, char **envp, const char *cwd, const int fds[3], int tty, uint32_t uid, uint32_t gid,
            const char **step);
/* `given` (count of them), and PATH, HOME, TERM where they lack, if `defaults`. The caller frees the array alone. */
char **environment(char **given, size_t count, int defaults);

/* ---- put.c, get.c ------------------------------------------------------------------------------------------------------ */

/* Copies see the file system from here: "/" but in tests. */
extern int copy_root;

void put_open(struct stream *stream, const char *payload, size_t size);
void put_data(struct stream *stream, const char *data, size_t size);
void put_eof(struct stream *stream);
void put_free(struct put *put);
void get_open(struct stream *stream, const char *payload, size_t size);
int get_pump(struct stream *stream);
void get_free(struct get *get);

/* openat2(2) with RESOLVE_* flags; descriptor or -1 with errno. */
int open_within(int folder, const char *path, int flags, uint64_t resolve);

/* ---- become.c ---------------------------------------------------------------------------------------------------------- */

/* The guest goes on from a template, as another: files in `folder`, and with `all` its names, networks, clock and random
 * numbers. What can't be done is told of. 0, or -1 if `payload` is not what BECOME has. */
int become_clone(const char *folder, const char *payload, size_t size, int all);

/* ---- command.c, power.c, agent.c --------------------------------------------------------------------------------------- */

/* Starts the guest's own command, output to the console: pid, 0 if there is none, -errno. */
pid_t command_start(const char *folder);

/* 128 + signal, or the exit code. */
struct agent_exit exit_of(int status);

/* Ends all processes and the machine. Doesn't return when the agent is PID 1. */
void power_down(uint32_t how, uint32_t grace_ms);

/* The agent from start to end; `failed`: the guest could not come up, and that is its result. */
int agent_run(const char *port, int listener, const char *folder, int failed);
int agent_main(int argc, char **argv);
extern uint32_t agent_flags; /* for WELCOME */
extern const char *agent_folder;
void agent_shutdown(uint32_t how, uint32_t grace_ms);
void agent_result_taken(void);
/* What BECOME asks for: 0, or -1 if that can't be. */
int agent_become(const char *payload, size_t size);
void agent_result(struct session *session); /* Sends RESULT if there is one. */

#endif
