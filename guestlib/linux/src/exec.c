/* exec.c: a command on a stream: its pipes or terminal, its signals, its end. */
#define _GNU_SOURCE
#include "agent.h"
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

static const uint64_t KILL_AFTER_NS = 2000000000;

/* Commands whose session ended: HUP was sent, KILL follows. */
struct abandoned {
    struct abandoned *next;
    pid_t pid;
    uint64_t kill_ns;
};
static struct abandoned *abandoned;

static void shut(int *fd) {
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

struct agent_exit exit_of(int status) {
    if (WIFSIGNALED(status))
        return (struct agent_exit){.status = 128 + (uint32_t)WTERMSIG(status), .signal = (uint32_t)WTERMSIG(status)};
    return (struct agent_exit){.status = (uint32_t)WEXITSTATUS(status)};
}

/* ---- starting ---------------------------------------------------------------------------------------------------------- */

static int open_terminal(struct exec *exec, const struct agent_exec *head, int fds[3]) {
    struct winsize size = {.ws_row = head->rows, .ws_col = head->columns};
    int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC), slave = -1;
    if (master >= 0 && !unlockpt(master))
        slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (slave < 0) {
        int error = errno;
        shut(&master);
        return -error;
    }
    ioctl(master, TIOCSWINSZ, &size);
    fcntl(master, F_SETFL, O_NONBLOCK);
    exec->in = master;
    exec->out = fcntl(master, F_DUPFD_CLOEXEC, 3);
    fds[0] = fds[1] = fds[2] = slave;
    return 0;
}

/* A pipe; `mine` (0 or 1) is the agent's side and doesn't block. */
static int open_pipe(int *own, int *other, int mine) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC))
        return -errno;
    *own = ends[mine];
    *other = ends[!mine];
    fcntl(*own, F_SETFL, O_NONBLOCK);
    return 0;
}

static int open_pipes(struct exec *exec, const struct agent_exec *head, int fds[3]) {
    int failed = 0;
    if (head->flags & AGENT_EXEC_NO_STDIN) {
        fds[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
        failed = fds[0] < 0 ? -errno : 0;
    } else {
        failed = open_pipe(&exec->in, &fds[0], 1);
    }
    if (!failed)
        failed = open_pipe(&exec->out, &fds[1], 0);
    if (!failed)
        failed = open_pipe(&exec->err, &fds[2], 0);
    return failed;
}

/* The strings of an EXEC. Checked: as many as it says, each terminated inside the payload, nothing behind. */
static char **strings(char *text, size_t size, size_t count) {
    char **list = calloc(count + 1, sizeof *list), *end = text + size;
    for (size_t i = 0; list && i < count; i++) {
        char *zero = text < end ? memchr(text, 0, (size_t)(end - text)) : NULL;
        if (!zero) {
            free(list);
            return NULL;
        }
        list[i] = text;
        text = zero + 1;
    }
    if (list && text != end) {
        free(list);
        return NULL;
    }
    return list;
}

static void start(struct stream *stream, const struct agent_exec *head, char **list) {
    struct exec *exec = &stream->exec;
    int fds[3] = {-1, -1, -1};
    const char *step = "";
    char **argv = calloc(head->argc + 1u, sizeof *argv);
    char **envp = environment(list + 1 + head->argc, head->envc, !(head->flags & AGENT_EXEC_CLEAN_ENV));
    int result = -ENOMEM;
    if (argv && envp) {
        memcpy(argv, list + 1, head->argc * sizeof *argv);
        result = head->flags & AGENT_EXEC_TTY ? open_terminal(exec, head, fds) : open_pipes(exec, head, fds);
        if (!result)
            result = spawn(argv, envp, list[0], fds, head->flags & AGENT_EXEC_TTY, head->uid, head->gid, &step);
    }
    close(fds[0]);
    if (fds[1] != fds[0]) {
        close(fds[1]);
        close(fds[2]);
    }
    if (result < 0) {
        stream_fail(stream, -result, "%s: %s%s", list[1], step, strerror(-result));
    } else {
        uint32_t pid = (uint32_t)result;
        exec->pid = result;
        exec->tty = head->flags & AGENT_EXEC_TTY;
        session_send(stream->session, AGENT_STARTED, stream->id, &pid, sizeof pid);
    }
    free(argv);
    free(envp);
}

void exec_open(struct stream *stream, const char *payload, size_t size) {
    struct agent_exec head;
    stream->kind = STREAM_EXEC;
    stream->exec = (struct exec){.in = -1, .out = -1, .err = -1};
    if (size < sizeof head) {
        stream_fail(stream, EPROTO, "an EXEC of %zu bytes cannot be", size);
        return;
    }
    memcpy(&head, payload, sizeof head);
    size -= sizeof head;
    char *text = malloc(size + 1);
    if (text)
        memcpy(text, payload + sizeof head, size);
    char **list = text && head.argc ? strings(text, size, 1u + head.argc + head.envc) : NULL;
    if (list)
        start(stream, &head, list);
    else
        stream_fail(stream, EPROTO, "an EXEC whose strings do not add up");
    free(list);
    free(text);
}

/* ---- what the host sends ----------------------------------------------------------------------------------------------- */

void exec_data(struct stream *stream, const char *data, size_t size) {
    struct exec *exec = &stream->exec;
    if (exec->in >= 0 && !exec->eof && !exec->input)
        exec->input = malloc(AGENT_WINDOW);
    if (exec->in < 0 || exec->eof || !exec->input) {
        stream_passed_on(stream, size); /* Nobody reads it any more. */
        return;
    }
    if (exec->input_end + size > AGENT_WINDOW) {
        memmove(exec->input, exec->input + exec->input_start, exec->input_end - exec->input_start);
        exec->input_end -= exec->input_start;
        exec->input_start = 0;
    }
    memcpy(exec->input + exec->input_end, data, size); /* It fits: no more is granted than was passed on. */
    exec->input_end += size;
}

void exec_eof(struct stream *stream) {
    stream->exec.eof = 1;
}

void exec_signal(struct stream *stream, uint32_t number) {
    struct exec *exec = &stream->exec;
    if (exec->exited || number < 1 || number >= NSIG)
        return;
    /* On a terminal the job in front has a group of its own. */
    pid_t front = exec->tty && exec->out >= 0 ? tcgetpgrp(exec->out) : -1;
    kill(-exec->pid, (int)number);
    if (front > 1 && front != exec->pid)
        kill(-front, (int)number);
}

void exec_resize(struct stream *stream, uint16_t rows, uint16_t columns) {
    struct winsize size = {.ws_row = rows, .ws_col = columns};
    if (stream->exec.tty && stream->exec.out >= 0)
        ioctl(stream->exec.out, TIOCSWINSZ, &size);
}

/* ---- moving bytes ------------------------------------------------------------------------------------------------------ */

static void end_of_input(struct exec *exec) {
    struct termios mode;
    char character = 4;
    if (!exec->tty) {
        shut(&exec->in);
        return;
    }
    /* A terminal has no end but the one that is typed. */
    if (!tcgetattr(exec->in, &mode) && mode.c_cc[VEOF])
        character = (char)mode.c_cc[VEOF];
    if (write(exec->in, &character, 1) == 1 || errno != EAGAIN)
        shut(&exec->in);
}

static int pump_in(struct stream *stream) {
    struct exec *exec = &stream->exec;
    size_t size = exec->input_end - exec->input_start;
    if (exec->in < 0)
        return 0;
    if (!size) {
        if (exec->eof)
            end_of_input(exec);
        return 0;
    }
    ssize_t done = write(exec->in, exec->input + exec->input_start, size);
    if (done < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (done < 0) { /* It reads no more. */
        shut(&exec->in);
        done = (ssize_t)size;
    }
    exec->input_start += (size_t)done;
    if (exec->input_start == exec->input_end)
        exec->input_start = exec->input_end = 0;
    stream_passed_on(stream, (size_t)done);
    return 1;
}

static int pump_out(struct stream *stream, int *fd, uint8_t type) {
    size_t room = stream_may_send(stream);
    if (*fd < 0 || !room)
        return 0;
    ssize_t got = read(*fd, session_payload(stream->session), room);
    if (got > 0) {
        stream->exec.unheld = 0;
        session_sent(stream->session, type, stream->id, (size_t)got);
        stream->credit -= (uint64_t)got;
        return 1;
    }
    if (got < 0 && (errno == EINTR || (errno == EAGAIN && !stream->exec.exited)))
        return 0;
    /* A command may close its terminal before it ends, and open it anew; closing this side would be a hangup. */
    stream->exec.unheld = stream->exec.tty && !stream->exec.exited;
    if (stream->exec.unheld)
        return 0;
    /* The end, or the command ended and all that it wrote was read. */
    shut(fd);
    return 1;
}

int exec_pump(struct stream *stream) {
    struct exec *exec = &stream->exec;
    int moved = pump_in(stream) | pump_out(stream, &exec->out, AGENT_STDOUT) | pump_out(stream, &exec->err, AGENT_STDERR);
    if (exec->exited && exec->out < 0 && exec->err < 0 && session_room(stream->session) >= 64) {
        struct agent_exit ended = {.status = exec->status, .signal = exec->signal};
        session_send(stream->session, AGENT_EXIT, stream->id, &ended, sizeof ended);
        stream_free(stream);
        return 1;
    }
    return moved;
}

int exec_wants(struct stream *stream, struct pollfd *fds) {
    struct exec *exec = &stream->exec;
    int count = 0;
    if (exec->in >= 0 && (exec->input_end > exec->input_start || exec->eof))
        fds[count++] = (struct pollfd){.fd = exec->in, .events = POLLOUT};
    if (stream_may_send(stream)) {
        if (exec->out >= 0 && !exec->unheld)
            fds[count++] = (struct pollfd){.fd = exec->out, .events = POLLIN};
        if (exec->err >= 0)
            fds[count++] = (struct pollfd){.fd = exec->err, .events = POLLIN};
    }
    return count;
}

/* ---- the end ----------------------------------------------------------------------------------------------------------- */

int exec_reaped(struct stream *stream, pid_t pid, int status) {
    struct exec *exec = &stream->exec;
    if (stream->kind != STREAM_EXEC || exec->exited || exec->pid != pid)
        return 0;
    struct agent_exit ended = exit_of(status);
    exec->exited = 1;
    exec->status = ended.status;
    exec->signal = ended.signal;
    shut(&exec->in);
    return 1;
}

void exec_abandon(struct stream *stream) {
    struct exec *exec = &stream->exec;
    shut(&exec->in);
    shut(&exec->out);
    shut(&exec->err);
    free(exec->input);
    exec->input = NULL;
    if (exec->exited || exec->pid <= 0)
        return;
    kill(-exec->pid, SIGHUP);
    kill(-exec->pid, SIGCONT);
    struct abandoned *entry = malloc(sizeof *entry);
    if (!entry) {
        kill(-exec->pid, SIGKILL);
        return;
    }
    *entry = (struct abandoned){.next = abandoned, .pid = exec->pid, .kill_ns = monotonic_ns() + KILL_AFTER_NS};
    abandoned = entry;
}

void exec_forget(pid_t pid) {
    for (struct abandoned **at = &abandoned; *at; at = &(*at)->next)
        if ((*at)->pid == pid) {
            struct abandoned *entry = *at;
            *at = entry->next;
            free(entry);
            return;
        }
}

uint64_t exec_next_kill_ns(void) {
    uint64_t next = UINT64_MAX;
    for (struct abandoned *at = abandoned; at; at = at->next)
        next = at->kill_ns < next ? at->kill_ns : next;
    return next;
}

void exec_kill_abandoned(int all) {
    uint64_t now = monotonic_ns();
    for (struct abandoned **at = &abandoned; *at;) {
        struct abandoned *entry = *at;
        if (!all && entry->kill_ns > now) {
            at = &entry->next;
            continue;
        }
        kill(-entry->pid, SIGKILL);
        *at = entry->next;
        free(entry);
    }
}
