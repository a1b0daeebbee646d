/* session.c: frames in and out, and which stream they are for (docs/agent-protocol.md). */
#define _GNU_SOURCE
#include "agent.h"
#include "text.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

#define FRAME sizeof(struct agent_frame)

/* ---- out --------------------------------------------------------------------------------------------------------------- */

size_t session_room(struct session *session) {
    if (session->out_start) {
        memmove(session->out, session->out + session->out_start, session->out_end - session->out_start);
        session->out_end -= session->out_start;
        session->out_start = 0;
    }
    return OUT_SIZE - session->out_end;
}

char *session_payload(struct session *session) {
    return session->out + session->out_end + FRAME;
}

void session_sent(struct session *session, uint8_t type, uint32_t stream, size_t size) {
    struct agent_frame frame = {.length = (uint32_t)size, .stream = stream, .type = type};
    memcpy(session->out + session->out_end, &frame, FRAME);
    memcpy(session->out + session->out_end + FRAME + size, &session->number, AGENT_MARK_SIZE);
    session->out_end += FRAME + size + AGENT_MARK_SIZE;
}

void session_send(struct session *session, uint8_t type, uint32_t stream, const void *payload, size_t size) {
    if (!session->open || session_room(session) < FRAME + size + AGENT_MARK_SIZE)
        return; /* Cannot be: every caller has looked. A frame lost is better than one cut. */
    if (size)
        memcpy(session_payload(session), payload, size);
    session_sent(session, type, stream, size);
}

int session_flush(struct session *session) {
    int moved = 0;
    while (session->port->fd >= 0 && session->port->writable && session->out_start < session->out_end) {
        ssize_t done = port_write(session->port, session->out + session->out_start, session->out_end - session->out_start);
        session->out_start += (size_t)done;
        moved |= done > 0;
    }
    return moved;
}

/* ---- streams ----------------------------------------------------------------------------------------------------------- */

size_t stream_may_send(struct stream *stream) {
    size_t room = session_room(stream->session);
    if (room < OUT_RESERVE + FRAME + AGENT_MARK_SIZE + 1)
        return 0;
    room -= OUT_RESERVE + FRAME + AGENT_MARK_SIZE;
    if (room > CHUNK)
        room = CHUNK;
    return stream->credit < room ? (size_t)stream->credit : room;
}

void stream_passed_on(struct stream *stream, size_t size) {
    stream->owed += (uint32_t)size;
}

static void grant(struct stream *stream) {
    /* In larger pieces, but never so that the host could wait for it. */
    if (stream->owed < AGENT_WINDOW / 8 && stream->granted > AGENT_WINDOW / 2)
        return;
    if (!stream->owed || session_room(stream->session) < 64)
        return;
    session_send(stream->session, AGENT_CREDIT, stream->id, &stream->owed, sizeof stream->owed);
    stream->granted += stream->owed;
    stream->owed = 0;
}

void stream_free(struct stream *stream) {
    switch (stream->kind) {
    case STREAM_EXEC:
        exec_abandon(stream);
        break;
    case STREAM_PUT:
        put_free(stream->put);
        break;
    case STREAM_GET:
        get_free(stream->get);
        break;
    default:
        break;
    }
    stream->kind = STREAM_FREE;
}

static void send_error(struct session *session, uint32_t stream, int code, const char *format, va_list list) {
    struct {
        struct agent_error error;
        char text[1024];
    } message = {.error.code = (uint32_t)code};
    int size = vsnprintf(message.text, sizeof message.text, format, list);
    size_t length = size < 0 ? 0 : (size_t)size < sizeof message.text ? (size_t)size : sizeof message.text - 1;
    session_send(session, AGENT_ERROR, stream, &message, sizeof message.error + length);
}

void stream_fail(struct stream *stream, int code, const char *format, ...) {
    va_list list;
    va_start(list, format);
    send_error(stream->session, stream->id, code, format, list);
    va_end(list);
    stream_free(stream);
}

static struct stream *stream_of(struct session *session, uint32_t id) {
    for (int i = 0; i < AGENT_MAX_STREAMS; i++)
        if (session->streams[i].kind != STREAM_FREE && session->streams[i].id == id)
            return &session->streams[i];
    return NULL;
}

/* ---- the session ------------------------------------------------------------------------------------------------------- */

void session_end(struct session *session) {
    for (int i = 0; i < AGENT_MAX_STREAMS; i++)
        stream_free(&session->streams[i]);
    session->open = 0;
}

/* The host said what can't be. Its next HELLO may lie in `in` already: nothing there is dropped. */
__attribute__((format(printf, 2, 3))) static int violated(struct session *session, const char *format, ...) {
    va_list list;
    va_start(list, format);
    send_error(session, 0, EPROTO, format, list);
    va_end(list);
    session_end(session);
    return 0;
}

static void welcome(struct session *session) {
    struct {
        struct agent_welcome head;
        char text[512];
    } message = {.head = {.version = AGENT_VERSION, .flags = agent_flags}};
    size_t size = 0;
    struct utsname system;
    uname(&system);
    for (int i = 0; i < 3; i++) {
        char path[256], text[128] = "";
        snprintf(path, sizeof path, "%s/%s", agent_folder, i ? "cluster" : "name");
        if (i == 2)
            snprintf(text, sizeof text, "%s", system.release);
        else if (read_small(path, text, sizeof text) < 0)
            text[0] = 0;
        trim(text);
        memcpy(message.text + size, text, strlen(text) + 1);
        size += strlen(text) + 1;
    }
    memcpy(session->out, AGENT_SYNC, AGENT_SYNC_SIZE);
    session->out_start = 0;
    session->out_end = AGENT_SYNC_SIZE;
    session_send(session, AGENT_WELCOME, 0, &message, sizeof message.head + size);
}

/* A new session, if these bytes begin one. Returns bytes taken, 0 to wait for more, -1 if they don't. Checked: all of it. */
static int begin(struct session *session, const char *bytes, size_t size) {
    struct agent_frame frame;
    struct agent_hello hello;
    uint32_t mark;
    size_t whole = AGENT_SYNC_SIZE + FRAME + sizeof hello + AGENT_MARK_SIZE;
    if (size < whole)
        return 0;
    memcpy(&frame, bytes + AGENT_SYNC_SIZE, FRAME);
    memcpy(&hello, bytes + AGENT_SYNC_SIZE + FRAME, sizeof hello);
    memcpy(&mark, bytes + whole - AGENT_MARK_SIZE, AGENT_MARK_SIZE);
    if (frame.length != sizeof hello || frame.stream || frame.type != AGENT_HELLO || mark != hello.session)
        return -1;
    session_end(session);
    session->number = hello.session;
    session->open = 1;
    welcome(session);
    if (hello.version != AGENT_VERSION)
        violated(session, "the agent speaks version %d, not %u", AGENT_VERSION, hello.version);
    else
        agent_result(session);
    return (int)whole;
}

/* Looks for where a session begins; whether anything was taken. */
static int synchronize(struct session *session) {
    char *from = session->in + session->in_start;
    size_t size = session->in_end - session->in_start;
    char *found = memmem(from, size, AGENT_SYNC, AGENT_SYNC_SIZE);
    if (!found) {
        size_t keep = size < AGENT_SYNC_SIZE - 1 ? size : AGENT_SYNC_SIZE - 1;
        session->in_start = session->in_end - keep;
        return 0;
    }
    session->in_start = (size_t)(found - session->in);
    int taken = begin(session, found, session->in_end - session->in_start);
    session->in_start += taken < 0 ? 1 : (size_t)taken;
    return taken != 0;
}

static struct stream *open_stream(struct session *session, uint32_t id) {
    for (int i = 0; i < AGENT_MAX_STREAMS; i++) {
        struct stream *stream = &session->streams[i];
        if (stream->kind == STREAM_FREE) {
            *stream = (struct stream){.session = session, .id = id, .credit = AGENT_WINDOW, .granted = AGENT_WINDOW};
            return stream;
        }
    }
    struct stream none = {.session = session, .id = id};
    stream_fail(&none, EMFILE, "%d streams are open already; wait for one to end", AGENT_MAX_STREAMS);
    return NULL;
}

static int opens(struct session *session, const struct agent_frame *frame, const char *payload) {
    if (!frame->stream || stream_of(session, frame->stream))
        return violated(session, "stream %u cannot be opened: it is", frame->stream);
    struct stream *stream = open_stream(session, frame->stream);
    if (!stream)
        return 1;
    if (frame->type == AGENT_EXEC)
        exec_open(stream, payload, frame->length);
    else if (frame->type == AGENT_PUT)
        put_open(stream, payload, frame->length);
    else
        get_open(stream, payload, frame->length);
    return 1;
}

static int of_session(struct session *session, const struct agent_frame *frame, const char *payload) {
    switch (frame->type) {
    case AGENT_PING:
        if (frame->length > 64)
            break;
        session_send(session, AGENT_PONG, 0, payload, frame->length);
        return 1;
    case AGENT_PONG:
        return 1;
    case AGENT_SHUTDOWN: {
        struct agent_shutdown shutdown;
        if (frame->length != sizeof shutdown)
            break;
        memcpy(&shutdown, payload, sizeof shutdown);
        if (shutdown.how > AGENT_REBOOT)
            break;
        agent_shutdown(shutdown.how, shutdown.grace_ms);
        return 1;
    }
    case AGENT_RESULT_TAKEN:
        agent_result_taken();
        return 1;
    case AGENT_BECOME:
        if (agent_become(payload, frame->length))
            break;
        session_send(session, AGENT_BECAME, 0, NULL, 0);
        return 1;
    }
    return violated(session, "a frame of type %u and %u bytes on stream 0 cannot be", frame->type, frame->length);
}

static int of_stream(struct session *session, const struct agent_frame *frame, const char *payload) {
    struct stream *stream = stream_of(session, frame->stream);
    uint32_t number = 0;
    if (frame->length >= sizeof number)
        memcpy(&number, payload, sizeof number);
    if (!stream)
        return 1; /* It may have ended meanwhile. */
    switch (frame->type) {
    case AGENT_DATA:
        if (frame->length > stream->granted || stream->kind == STREAM_GET)
            return violated(session, "stream %u: %u bytes, more than were granted", frame->stream, frame->length);
        stream->granted -= frame->length;
        stream->kind == STREAM_EXEC ? exec_data(stream, payload, frame->length) : put_data(stream, payload, frame->length);
        return 1;
    case AGENT_EOF:
        if (stream->kind == STREAM_EXEC)
            exec_eof(stream);
        else if (stream->kind == STREAM_PUT)
            put_eof(stream);
        return 1;
    case AGENT_CREDIT:
        if (frame->length != sizeof number || stream->credit + number > 1u << 31)
            break;
        stream->credit += number;
        return 1;
    case AGENT_SIGNAL:
        if (frame->length != sizeof number || stream->kind != STREAM_EXEC)
            break;
        exec_signal(stream, number);
        return 1;
    case AGENT_RESIZE:
        if (frame->length != sizeof number || stream->kind != STREAM_EXEC)
            break;
        exec_resize(stream, (uint16_t)number, (uint16_t)(number >> 16));
        return 1;
    case AGENT_CANCEL:
        if (stream->kind == STREAM_EXEC)
            exec_signal(stream, 9);
        else
            stream_fail(stream, ECANCELED, "the copy was cancelled");
        return 1;
    case AGENT_ERROR:
        if (stream->kind == STREAM_EXEC)
            exec_signal(stream, 9);
        else
            stream_free(stream);
        return 1;
    }
    return violated(session, "stream %u: a frame of type %u and %u bytes cannot be", frame->stream, frame->type, frame->length);
}

/* Takes one frame, if it is whole. Checked: length, zeros, and the session's number behind it, before it is acted on. */
static int take_frame(struct session *session) {
    struct agent_frame frame;
    uint32_t mark;
    const char *from = session->in + session->in_start;
    size_t size = session->in_end - session->in_start;
    if (size < FRAME)
        return 0;
    memcpy(&frame, from, FRAME);
    if (frame.length > AGENT_MAX_PAYLOAD || frame.zero[0] || frame.zero[1] || frame.zero[2]) {
        violated(session, "what came is no frame");
        return 1;
    }
    if (size < FRAME + frame.length + AGENT_MARK_SIZE)
        return 0;
    memcpy(&mark, from + FRAME + frame.length, AGENT_MARK_SIZE);
    if (mark != session->number) {
        violated(session, "a frame of another session");
        return 1;
    }
    session->in_start += FRAME + frame.length + AGENT_MARK_SIZE;
    if (frame.type == AGENT_EXEC || frame.type == AGENT_PUT || frame.type == AGENT_GET)
        opens(session, &frame, from + FRAME);
    else if (!frame.stream)
        of_session(session, &frame, from + FRAME);
    else
        of_stream(session, &frame, from + FRAME);
    return 1;
}

int session_parse(struct session *session) {
    int moved = 0;
    /* Every frame may have a reply: it is taken only when there is room for that. */
    while (session->in_start < session->in_end && session_room(session) >= OUT_RESERVE)
        if (session->open ? take_frame(session) : synchronize(session))
            moved = 1;
        else
            break;
    return moved;
}

static int receive(struct session *session) {
    if (session->in_start) {
        memmove(session->in, session->in + session->in_start, session->in_end - session->in_start);
        session->in_end -= session->in_start;
        session->in_start = 0;
    }
    if (session->port->fd < 0 || !session->port->readable || session->in_end == IN_SIZE)
        return 0;
    ssize_t got = port_read(session->port, session->in + session->in_end, IN_SIZE - session->in_end);
    if (got < 0) {
        session_end(session);
        session->in_end = session->out_start = session->out_end = 0;
        port_hung_up(session->port);
        return 0;
    }
    session->in_end += (size_t)got;
    return got > 0;
}

int session_pump(struct session *session) {
    int moved = receive(session) | session_parse(session);
    for (int i = 0; i < AGENT_MAX_STREAMS; i++) {
        struct stream *stream = &session->streams[i];
        if (stream->kind == STREAM_EXEC)
            moved |= exec_pump(stream);
        else if (stream->kind == STREAM_GET)
            moved |= get_pump(stream);
        if (stream->kind != STREAM_FREE)
            grant(stream);
    }
    return moved | session_flush(session);
}
