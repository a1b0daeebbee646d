/* agent.c: the loop, signals, the guest's own command, and the way down. */
#define _GNU_SOURCE
#include "agent.h"
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

static const uint64_t RESULT_WAIT_NS = 2000000000, BYE_WAIT_NS = 500000000;
static const uint32_t GRACE_MS = 2000;

uint32_t agent_flags;
const char *agent_folder = HOSTD_RUN;

static struct {
    struct port port;
    struct session session;
    int signals;
    int tests;                      /* an ordinary process on the host: nothing powers off */
    pid_t command;
    int has_result, result_taken;
    struct agent_exit result;
    uint64_t result_deadline_ns;
    int going_down, said_bye;
    uint32_t how, grace_ms;
    uint64_t down_deadline_ns;
} agent;

/* ---- what the session asks for ----------------------------------------------------------------------------------------- */

void agent_shutdown(uint32_t how, uint32_t grace_ms) {
    if (agent.going_down)
        return;
    agent.going_down = 1;
    agent.how = how;
    agent.grace_ms = grace_ms;
    agent.down_deadline_ns = monotonic_ns() + BYE_WAIT_NS;
}

void agent_result_taken(void) {
    agent.result_taken = agent.has_result;
}

int agent_become(const char *payload, size_t size) {
    return become_clone(agent_folder, payload, size, !agent.tests);
}

void agent_result(struct session *session) {
    if (agent.has_result && session->open && session_room(session) >= 64)
        session_send(session, AGENT_RESULT, 0, &agent.result, sizeof agent.result);
}

static void command_ended(struct agent_exit result) {
    agent.has_result = 1;
    agent.result = result;
    agent.result_deadline_ns = monotonic_ns() + RESULT_WAIT_NS;
    agent_result(&agent.session);
}

/* ---- signals ----------------------------------------------------------------------------------------------------------- */

static void reap(void) {
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
        exec_forget(pid);
        for (int i = 0; i < AGENT_MAX_STREAMS; i++)
            exec_reaped(&agent.session.streams[i], pid, status);
        if (pid == agent.command) {
            agent.command = 0;
            struct agent_exit result = exit_of(status);
            say("the command ended with status %u", result.status);
            command_ended(result);
        }
    }
}

static void take_signals(void) {
    struct signalfd_siginfo info;
    while (read(agent.signals, &info, sizeof info) == sizeof info) {
        if (info.ssi_signo == SIGCHLD)
            reap();
        else /* SIGINT is Ctrl-Alt-Del for PID 1. */
            agent_shutdown(info.ssi_signo == SIGINT && getpid() == 1 ? AGENT_REBOOT : AGENT_POWER_OFF, GRACE_MS);
    }
}

static void block_signals(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    agent.signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
}

/* ---- the way down ------------------------------------------------------------------------------------------------------ */

/* Whether the loop ends. */
static int go_down(void) {
    struct session *session = &agent.session;
    if (agent.has_result && !agent.going_down && (agent.result_taken || monotonic_ns() >= agent.result_deadline_ns))
        agent_shutdown(AGENT_POWER_OFF, GRACE_MS);
    if (!agent.going_down)
        return 0;
    if (session->open && !agent.said_bye && session_room(session) >= 64) {
        session_send(session, AGENT_BYE, 0, &agent.how, sizeof agent.how);
        agent.said_bye = 1;
    }
    session_flush(session);
    int waiting = session->open && session->out_start < session->out_end;
    return !waiting || monotonic_ns() >= agent.down_deadline_ns;
}

/* ---- the loop ---------------------------------------------------------------------------------------------------------- */

static void sooner(uint64_t *wait_ns, uint64_t deadline_ns) {
    uint64_t now = monotonic_ns(), wait = deadline_ns == UINT64_MAX ? deadline_ns : deadline_ns > now ? deadline_ns - now : 0;
    if (wait < *wait_ns)
        *wait_ns = wait;
}

static void wait_for_something(int moved) {
    struct pollfd fds[2 + 3 * AGENT_MAX_STREAMS] = {
        {.fd = agent.signals, .events = POLLIN},
        {.fd = agent.port.events, .events = POLLIN},
    };
    int count = 2;
    for (int i = 0; i < AGENT_MAX_STREAMS; i++)
        if (agent.session.streams[i].kind == STREAM_EXEC)
            count += exec_wants(&agent.session.streams[i], fds + count);
    uint64_t wait_ns = port_open(&agent.port);
    sooner(&wait_ns, exec_next_kill_ns());
    if (agent.going_down)
        sooner(&wait_ns, agent.down_deadline_ns);
    else if (agent.has_result)
        sooner(&wait_ns, agent.result_deadline_ns);
    int limit = moved ? 0 : wait_ns == UINT64_MAX ? -1 : (int)((wait_ns + 999999) / 1000000);
    if (poll(fds, (nfds_t)count, limit) <= 0)
        return;
    if (fds[0].revents)
        take_signals();
    if (fds[1].revents)
        port_events(&agent.port);
}

int agent_run(const char *port, int listener, const char *folder, int failed) {
    agent.tests = listener >= 0;
    agent_folder = folder;
    agent_flags = getpid() == 1 ? AGENT_IS_INIT : 0;
    block_signals();
    port_init(&agent.port, port, listener);
    agent.session.port = &agent.port;
    if (failed) {
        agent_flags |= AGENT_HAS_COMMAND;
        command_ended((struct agent_exit){.status = 1});
    } else {
        agent.command = command_start(folder);
        if (agent.command)
            agent_flags |= AGENT_HAS_COMMAND;
        if (agent.command < 0)
            command_ended((struct agent_exit){.status = agent.command == -ENOENT ? 127 : 126});
    }
    for (int moved = 1; !go_down();) {
        wait_for_something(moved);
        moved = session_pump(&agent.session);
        exec_kill_abandoned(0);
    }
    session_end(&agent.session);
    exec_kill_abandoned(1);
    if (agent.tests)
        return agent.how == AGENT_REBOOT ? 3 : 0;
    power_down(agent.how, agent.grace_ms);
    return 0;
}

int agent_main(int argc, char **argv) {
    const char *port = AGENT_PORT, *folder = HOSTD_RUN;
    int listener = -1;
    for (int option; (option = getopt(argc, argv, "p:l:f:r:")) >= 0;) {
        switch (option) {
        case 'p':
            port = optarg;
            break;
        case 'l':
            listener = atoi(optarg);
            break;
        case 'f':
            folder = optarg;
            break;
        case 'r':
            copy_root = open(optarg, O_PATH | O_DIRECTORY | O_CLOEXEC);
            if (copy_root >= 0)
                break;
            say("agent: %s: %s", optarg, strerror(errno));
            return 1;
        default:
            say("agent: use agent [-p PORT] [-f FOLDER], or -l SOCKET -r ROOT to try it on a host");
            return 2;
        }
    }
    return agent_run(port, listener, folder, 0);
}
