/* terminal.c: see terminal.h. */
#define _GNU_SOURCE
#include "terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { INPUT = 256 };

/* --- the log --- */

/* PATH becomes PATH.1, and the log's descriptor a new PATH. When that fails the old one grows on. */
static void rotate(struct terminal *terminal) {
    char *full = NULL;
    terminal->log_size = 0; /* Not again with the next byte, whatever happens. */
    if (asprintf(&full, "%s.1", terminal->log_path) < 0)
        return;
    if (rename(terminal->log_path, full) == 0) {
        int fresh = open(terminal->log_path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
        if (fresh >= 0) {
            dup3(fresh, terminal->log_fd, O_CLOEXEC);
            close(fresh);
        }
    }
    free(full);
}

static void write_log(struct terminal *terminal, const uint8_t *bytes, uint32_t size) {
    if (terminal->log_fd < 0)
        return;
    for (uint32_t done = 0; done < size;) {
        ssize_t written = write(terminal->log_fd, bytes + done, size - done);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            break; /* A full disk costs the guest its log, not its life. */
        done += (uint32_t)written;
    }
    terminal->log_size += size;
    if (terminal->log_path && terminal->log_size >= terminal->log_limit)
        rotate(terminal);
}

/* --- watching for a panic --- */

static void line_ends(struct terminal *terminal) {
    static const char words[] = "Kernel panic - not syncing";
    terminal->line[terminal->line_size] = 0;
    const char *found = strstr(terminal->line, words);
    /* Its first words, but for the kernel's time stamp: not any line that has them somewhere. */
    if (found && !terminal->panic[0] && (found == terminal->line || (terminal->line[0] == '[' && found[-1] == ' ')))
        strcpy(terminal->panic, found);
    terminal->line_size = 0;
}

static void watch(struct terminal *terminal, const uint8_t *bytes, uint32_t size) {
    for (uint32_t i = 0; i < size; i++) {
        if (bytes[i] == '\n')
            line_ends(terminal);
        else if (bytes[i] >= ' ' && terminal->line_size < TERMINAL_LINE - 1)
            terminal->line[terminal->line_size++] = (char)bytes[i];
    }
}

/* --- clients; all under the lock --- */

static void want(struct terminal_client *client) {
    loop_change(client->terminal->loop, &client->handler,
                (client->reading ? EPOLLIN : 0u) | (client->size ? EPOLLOUT : 0u));
}

/* What the socket doesn't take now waits; what there is no room for is lost. */
static void queue(struct terminal_client *client, const uint8_t *bytes, uint32_t size) {
    uint32_t room = TERMINAL_BACKLOG - client->size, taken = size < room ? size : room;
    for (uint32_t i = 0; i < taken; i++)
        client->backlog[(client->start + client->size + i) % TERMINAL_BACKLOG] = bytes[i];
    client->terminal->lost += size - taken;
    client->size += taken;
}

static void flush(struct terminal_client *client) {
    while (client->size) {
        uint32_t piece = TERMINAL_BACKLOG - client->start;
        piece = client->size < piece ? client->size : piece;
        ssize_t sent = send(client->handler.fd, client->backlog + client->start, piece, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent <= 0)
            return; /* Full; or gone, which the loop tells. */
        client->start = (client->start + (uint32_t)sent) % TERMINAL_BACKLOG;
        client->size -= (uint32_t)sent;
    }
}

static void send_client(struct terminal_client *client, const uint8_t *bytes, uint32_t size) {
    uint32_t before = client->size;
    queue(client, bytes, size);
    if (!before) {
        flush(client);
        if (client->size)
            want(client);
    }
}

void terminal_write(struct terminal *terminal, const uint8_t *bytes, uint32_t size) {
    pthread_mutex_lock(&terminal->lock);
    write_log(terminal, bytes, size);
    watch(terminal, bytes, size);
    for (uint32_t i = 0; i < size; i++)
        terminal->tail[terminal->written++ % TERMINAL_TAIL] = bytes[i];
    for (int i = 0; i < TERMINAL_CLIENTS; i++)
        if (terminal->clients[i].handler.fd >= 0)
            send_client(&terminal->clients[i], bytes, size);
    pthread_mutex_unlock(&terminal->lock);
}

/* --- the I/O thread's side: clients come, type and go --- */

static void leave(struct terminal_client *client) {
    struct terminal *terminal = client->terminal;
    pthread_mutex_lock(&terminal->lock);
    loop_remove(terminal->loop, &client->handler);
    close(client->handler.fd);
    client->handler.fd = -1;
    free(client->backlog);
    client->backlog = NULL;
    pthread_mutex_unlock(&terminal->lock);
}

static void stop_reading(struct terminal_client *client, const uint64_t *unless_changed) {
    struct terminal *terminal = client->terminal;
    pthread_mutex_lock(&terminal->lock);
    if (!unless_changed || terminal->input_changes == *unless_changed) {
        client->reading = 0;
        want(client);
    }
    pthread_mutex_unlock(&terminal->lock);
}

/* Inputs are added before the thread starts. */
static const struct terminal_input *listener(const struct terminal *terminal) {
    for (uint32_t i = 0; i < terminal->input_count; i++) {
        const struct terminal_input *input = &terminal->inputs[i];
        if (!input->listening || input->listening(input->device))
            return input;
    }
    return NULL;
}

/* Checked: no more is read than the device has room for. Returns 0 when the client is gone. */
static int typed(struct terminal_client *client) {
    struct terminal *terminal = client->terminal;
    uint8_t bytes[INPUT];
    pthread_mutex_lock(&terminal->lock);
    uint64_t changes = terminal->input_changes;
    pthread_mutex_unlock(&terminal->lock);
    const struct terminal_input *input = listener(terminal);
    uint32_t room = input ? input->room(input->device) : 0;
    if (!room) {
        stop_reading(client, &changes);
        return 1;
    }
    ssize_t size = recv(client->handler.fd, bytes, room < INPUT ? room : INPUT, MSG_DONTWAIT);
    if (size > 0)
        input->take(input->device, bytes, (uint32_t)size);
    else if (size == 0) { /* It types no more, but may still watch. */
        client->ended = 1;
        stop_reading(client, NULL);
    } else
        return errno == EAGAIN || errno == EINTR;
    return 1;
}

static void client_ready(struct loop_handler *handler, uint32_t events) {
    struct terminal_client *client = handler->ctx;
    struct terminal *terminal = client->terminal;
    if (client->handler.fd < 0) /* Only this thread closes. */
        return;
    if (events & (EPOLLHUP | EPOLLERR) || ((events & EPOLLIN) && !typed(client))) {
        leave(client);
        return;
    }
    if (events & EPOLLOUT) {
        pthread_mutex_lock(&terminal->lock);
        flush(client);
        want(client);
        pthread_mutex_unlock(&terminal->lock);
    }
}

/* Checked: a free place; nothing is ever said to a client that finds none. */
static int enter(struct terminal *terminal, int fd) {
    struct terminal_client *client = NULL;
    for (int i = 0; i < TERMINAL_CLIENTS && !client; i++)
        if (terminal->clients[i].handler.fd < 0)
            client = &terminal->clients[i];
    if (!client || !(client->backlog = malloc(TERMINAL_BACKLOG)))
        return 0;
    client->start = client->size = 0;
    client->ended = 0;
    client->reading = 1;
    client->handler = (struct loop_handler){.fd = fd, .fn = client_ready, .ctx = client};
    if (loop_add(terminal->loop, &client->handler, EPOLLIN)) {
        client->handler.fd = -1;
        free(client->backlog);
        client->backlog = NULL;
        return 0;
    }
    uint64_t end = terminal->written, start = end > TERMINAL_TAIL ? end - TERMINAL_TAIL : 0;
    for (uint64_t at = start; at < end; at++)
        queue(client, &terminal->tail[at % TERMINAL_TAIL], 1);
    flush(client);
    want(client);
    return 1;
}

static void connected(struct loop_handler *handler, uint32_t events) {
    struct terminal *terminal = handler->ctx;
    (void)events;
    int fd = accept4(handler->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return;
    pthread_mutex_lock(&terminal->lock);
    int entered = enter(terminal, fd);
    pthread_mutex_unlock(&terminal->lock);
    if (!entered)
        close(fd);
}

static void input_changed(struct terminal *terminal) {
    terminal->input_changes++;
    for (int i = 0; i < TERMINAL_CLIENTS; i++) {
        struct terminal_client *client = &terminal->clients[i];
        if (client->handler.fd >= 0 && !client->reading && !client->ended) {
            client->reading = 1;
            want(client);
        }
    }
}

void terminal_more(struct terminal *terminal) {
    pthread_mutex_lock(&terminal->lock);
    input_changed(terminal);
    pthread_mutex_unlock(&terminal->lock);
}

int terminal_add_input(struct terminal *terminal, const struct terminal_input *input) {
    int full = terminal->input_count == TERMINAL_INPUTS;
    pthread_mutex_lock(&terminal->lock);
    if (!full)
        terminal->inputs[terminal->input_count++] = *input;
    input_changed(terminal);
    pthread_mutex_unlock(&terminal->lock);
    return full ? -ENOSPC : 0;
}

/* --- opening --- */

/* A socket at a path of any length: by its directory's descriptor, since a socket address holds 107 bytes only. */
static int bind_at(int fd, const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *name = strrchr(path, '/');
    int directory = AT_FDCWD, size;
    if (name) {
        char *parent = strndup(path, name == path ? 1 : (size_t)(name - path));
        if (!parent)
            return -ENOMEM;
        directory = open(parent, O_PATH | O_DIRECTORY | O_CLOEXEC);
        free(parent);
        if (directory < 0)
            return -errno;
        size = snprintf(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d%s", directory, name);
    } else {
        size = snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    }
    int error = size < (int)sizeof address.sun_path ? 0 : -ENAMETOOLONG;
    if (!error) {
        unlink(path);
        fchmod(fd, 0600);
        error = bind(fd, (struct sockaddr *)&address, sizeof address) ? -errno : 0;
    }
    if (directory != AT_FDCWD)
        close(directory);
    return error;
}

static int listen_at(struct terminal *terminal, const char *path) {
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    terminal->listener = (struct loop_handler){.fd = fd, .fn = connected, .ctx = terminal};
    int error = bind_at(fd, path);
    if (!error && !(terminal->socket_path = strdup(path)))
        error = -ENOMEM;
    if (!error && listen(fd, TERMINAL_CLIENTS) != 0)
        error = -errno;
    return error ? error : loop_add(terminal->loop, &terminal->listener, EPOLLIN);
}

int terminal_open(struct terminal *terminal, struct loop *loop, int log_fd, const char *log_path, uint64_t log_limit,
                  const char *socket_path) {
    struct stat status;
    *terminal = (struct terminal){.loop = loop, .log_fd = log_fd, .log_limit = log_limit, .listener.fd = -1};
    for (int i = 0; i < TERMINAL_CLIENTS; i++) {
        terminal->clients[i].terminal = terminal;
        terminal->clients[i].handler.fd = -1;
    }
    int error = -pthread_mutex_init(&terminal->lock, NULL);
    if (error)
        return error;
    if (log_path && !(terminal->log_path = strdup(log_path)))
        error = -ENOMEM;
    if (log_fd >= 0 && fstat(log_fd, &status) == 0)
        terminal->log_size = (uint64_t)status.st_size;
    if (!error && socket_path)
        error = listen_at(terminal, socket_path);
    if (error)
        terminal_close(terminal);
    return error;
}

void terminal_close(struct terminal *terminal) {
    for (int i = 0; i < TERMINAL_CLIENTS; i++)
        if (terminal->clients[i].handler.fd >= 0)
            leave(&terminal->clients[i]);
    if (terminal->listener.fd >= 0) {
        loop_remove(terminal->loop, &terminal->listener);
        close(terminal->listener.fd);
    }
    if (terminal->socket_path)
        unlink(terminal->socket_path);
    free(terminal->socket_path);
    free(terminal->log_path);
    pthread_mutex_destroy(&terminal->lock);
}
