/*
 * agent_fuzz.c: hostile frames and records against the agent's session, under the sanitizers: agent_fuzz ROOT SEED CASES.
 * Commands are replaced by ones that do nothing; copies see only ROOT.
 */
#define _GNU_SOURCE
#include "agent.h"
#include "text.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- what stands in for commands and power ----------------------------------------------------------------------------- */

uint32_t agent_flags;
const char *agent_folder = "/nonexistent";
static uint64_t seen[256], shutdowns;

void exec_open(struct stream *stream, const char *payload, size_t size) {
    (void)payload;
    stream->kind = STREAM_EXEC;
    seen[AGENT_EXEC]++;
    if (size % 3 == 0)
        stream_fail(stream, 2, "no such command");
}
void exec_data(struct stream *stream, const char *data, size_t size) {
    for (size_t i = 0; i < size; i++)
        seen[AGENT_DATA] += (uint8_t)data[i] & 1;
    stream_passed_on(stream, size);
}
void exec_eof(struct stream *stream) {
    stream_fail(stream, 1, "over");
}
void exec_signal(struct stream *stream, uint32_t number) {
    (void)stream, (void)number;
}
void exec_resize(struct stream *stream, uint16_t rows, uint16_t columns) {
    (void)stream, (void)rows, (void)columns;
}
int exec_pump(struct stream *stream) {
    (void)stream;
    return 0;
}
void exec_abandon(struct stream *stream) {
    (void)stream;
}
void agent_shutdown(uint32_t how, uint32_t grace_ms) {
    (void)grace_ms;
    shutdowns += how;
}
void agent_result_taken(void) {}
int agent_become(const char *payload, size_t size) {
    return size && payload[0] & 1 ? -1 : 0;
}
void agent_result(struct session *session) {
    (void)session;
}
ssize_t port_read(struct port *port, void *data, size_t room) {
    (void)port, (void)data, (void)room;
    return 0;
}
ssize_t port_write(struct port *port, const void *data, size_t size) {
    (void)port, (void)data;
    return (ssize_t)size;
}
void port_hung_up(struct port *port) {
    (void)port;
}

/* ---- bytes ------------------------------------------------------------------------------------------------------------- */

static uint64_t state;

static uint32_t rnd(uint32_t below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32) % below;
}

static char bytes[IN_SIZE];

static size_t put_text(char *at, const char *text) {
    size_t size = strlen(text) + 1;
    memcpy(at, text, size);
    return size;
}

static const char *some_path(void) {
    static const char *const paths[] = {"/",    "/a",  "/a/b", "/../../etc", "/a/../../x", "",     "relative", "//a//",
                                        "/a/l", "/l",  "/l/x", "/d/",        "/a/b/c/d",   "/big", "/.",       "/.."};
    return paths[rnd(sizeof paths / sizeof *paths)];
}

static size_t some_record(char *at) {
    static const char *const names[] = {"", "a", "b", "a/b", "..", "../x", "a/../../x", "/etc/x", "l", "l/x", "a//b", ".", "a/."};
    const char *name = names[rnd(3) ? rnd(4) : rnd(sizeof names / sizeof *names)];
    static const char *const targets[] = {"/", "..", "a", "/etc", ""};
    const char *target = targets[rnd(5)];
    struct agent_record record = {.kind = (uint8_t)(rnd(8) ? 1 + rnd(3) : rnd(256)), .mode = rnd(8) ? 0755 : rnd(1u << 31)};
    record.path_size = (uint16_t)(rnd(50) ? strlen(name) : rnd(65536));
    record.target_size = (uint16_t)(record.kind == AGENT_SYMLINK || !rnd(20) ? strlen(target) : 0);
    record.size = record.kind == AGENT_FILE ? rnd(20) ? rnd(300) : (uint64_t)rnd(1u << 30) << rnd(34) : !rnd(30);
    record.mtime_ns = (int64_t)(((uint64_t)rnd(1u << 31) << 33) ^ rnd(1u << 31));
    memcpy(at, &record, sizeof record);
    memcpy(at + sizeof record, name, strlen(name));
    memcpy(at + sizeof record + strlen(name), target, strlen(target));
    size_t size = sizeof record + strlen(name) + record.target_size;
    size_t content = record.size < 300 ? (size_t)record.size : rnd(300);
    memset(at + size, 'x', content);
    return size + content;
}

static size_t some_payload(char *at, uint8_t type) {
    uint32_t number = rnd(4) ? rnd(1000) : rnd(1u << 31) * 2;
    size_t size = 0;
    switch (type) {
    case AGENT_PUT:
    case AGENT_GET:
        number = rnd(4);
        memcpy(at, &number, 4);
        size = 4 + put_text(at + 4, some_path());
        if (type == AGENT_PUT || !rnd(9))
            size += put_text(at + size, rnd(5) ? "name" : "..");
        break;
    case AGENT_DATA:
        for (uint32_t i = 1 + rnd(3); i; i--)
            size += some_record(at + size);
        break;
    case AGENT_CREDIT:
    case AGENT_SIGNAL:
    case AGENT_RESIZE:
        memcpy(at, &number, 4);
        size = 4;
        break;
    case AGENT_SHUTDOWN:
        memset(at, 0, 8);
        size = 8;
        break;
    default:
        size = rnd(100);
        memset(at, 'p', size);
    }
    return rnd(12) ? size : rnd((uint32_t)size + 1);
}

static size_t some_frame(char *at, uint32_t session) {
    static const uint8_t types[] = {1, 1, 1, 1, 2, 3, 4, 5, 6, 17, 18, 19, 20, 21, 21, 22, 22, 23, 24};
    struct agent_frame frame = {.stream = rnd(8) ? 1 + rnd(3) : rnd(40), .type = types[rnd(sizeof types)]};
    if (frame.type == AGENT_PING || frame.type == AGENT_SHUTDOWN || frame.type == AGENT_RESULT_TAKEN)
        frame.stream = rnd(9) == 0;
    if (!rnd(60))
        frame.type = (uint8_t)rnd(256);
    frame.length = (uint32_t)some_payload(at + sizeof frame, frame.type);
    size_t size = sizeof frame + frame.length;
    if (!rnd(200))
        session ^= 1;
    memcpy(at + size, &session, 4);
    if (!rnd(200))
        frame.length = rnd(1u << 31) * 2;
    if (!rnd(300))
        frame.zero[rnd(3)] = 1;
    memcpy(at, &frame, sizeof frame);
    return size + 4;
}

static size_t some_hello(char *at, uint32_t session) {
    struct agent_frame frame = {.length = sizeof(struct agent_hello), .type = AGENT_HELLO};
    struct agent_hello hello = {.version = rnd(20) ? AGENT_VERSION : rnd(4), .session = session};
    memcpy(at, AGENT_SYNC, AGENT_SYNC_SIZE);
    memcpy(at + AGENT_SYNC_SIZE, &frame, sizeof frame);
    memcpy(at + AGENT_SYNC_SIZE + sizeof frame, &hello, sizeof hello);
    memcpy(at + AGENT_SYNC_SIZE + sizeof frame + sizeof hello, &session, 4);
    size_t size = AGENT_SYNC_SIZE + sizeof frame + sizeof hello + 4;
    if (!rnd(20))
        at[rnd((uint32_t)size)] ^= (char)(1 << rnd(8));
    return size;
}

/* What the agent says must be frames of the session, whatever came in. */
static void check_out(const struct session *session) {
    size_t at = session->out_start;
    while (at < session->out_end) {
        struct agent_frame frame;
        uint32_t mark;
        if (session->out_end - at >= AGENT_SYNC_SIZE && !memcmp(session->out + at, AGENT_SYNC, AGENT_SYNC_SIZE))
            at += AGENT_SYNC_SIZE;
        memcpy(&frame, session->out + at, sizeof frame);
        if (frame.length > AGENT_MAX_PAYLOAD || at + sizeof frame + frame.length + 4 > session->out_end)
            abort();
        memcpy(&mark, session->out + at + sizeof frame + frame.length, 4);
        if (mark != session->number || !frame.type)
            abort();
        seen[frame.type]++;
        at += sizeof frame + frame.length + 4;
    }
}

static struct session session;
static struct port port = {.fd = -1};

/* Gives the session some bytes, in pieces. */
static void feed(size_t size) {
    for (size_t at = 0; at < size;) {
        size_t part = 1 + rnd((uint32_t)(size - at < 400 ? size - at : 400));
        if (session.in_start) {
            memmove(session.in, session.in + session.in_start, session.in_end - session.in_start);
            session.in_end -= session.in_start;
            session.in_start = 0;
        }
        if (session.in_end + part > IN_SIZE)
            abort(); /* It would never read again. */
        memcpy(session.in + session.in_end, bytes + at, part);
        session.in_end += part;
        at += part;
        do {
            check_out(&session);
            session.out_start = session.out_end = 0;
        } while (session_pump(&session));
    }
}

int main(int argc, char **argv) {
    if (argc != 4)
        return 2;
    copy_root = open(argv[1], O_PATH | O_DIRECTORY);
    state = strtoull(argv[2], NULL, 10) * 0x9e3779b97f4a7c15 + 1;
    session.port = &port;
    if (copy_root < 0)
        return 2;
    uint64_t cases = strtoull(argv[3], NULL, 10);
    for (uint64_t i = 0; i < cases; i++) {
        uint32_t number = session.number;
        size_t size = 0;
        if (!session.open || !rnd(200)) {
            number = rnd(1u << 31);
            if (!rnd(3)) {
                memset(bytes, rnd(4) ? 0 : 'h', size = rnd(400));
            }
            if (session.in_end > session.in_start && !rnd(2)) { /* as the page on the protocol says */
                memset(bytes, 0, size = 0);
                session_end(&session);
                session.in_start = session.in_end = 0;
            }
            size += some_hello(bytes + size, number);
        }
        for (uint32_t frames = rnd(4); frames; frames--)
            size += some_frame(bytes + size, number);
        feed(size);
        if (session.in_end - session.in_start > 8192) { /* A length that waits for more than it is worth. */
            session_end(&session);
            session.in_start = session.in_end = 0;
        }
    }
    session_end(&session);
    printf("%lu welcomes %lu errors %lu done %lu data %lu exec\n", seen[AGENT_WELCOME], seen[AGENT_ERROR], seen[AGENT_DONE],
           seen[AGENT_DATA], seen[AGENT_EXEC]);
    /* It must have come deep enough. */
    return seen[AGENT_WELCOME] && seen[AGENT_ERROR] && seen[AGENT_DONE] && seen[AGENT_DATA] && seen[AGENT_EXEC] ? 0 : 3;
}
