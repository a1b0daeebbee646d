/* guestctl.c: see guestctl.h. */
#define _GNU_SOURCE
#include "guestctl.h"
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define AS_IT_IS (UINT64_MAX - 1)

static const char USAGE[] =
    "guestctl ls [-j]                       this guest's regions and channels\n"
    "guestctl send CHANNEL [FILE|-]         each line as a message; -r: pieces of max_message bytes\n"
    "guestctl recv CHANNEL [-n N]           messages as lines, until N came or the sender ended; -r: no newlines\n"
    "guestctl bench OUT IN [-n N] [-s SIZE] round trips and throughput, as JSON\n"
    "guestctl bench -a IN OUT               the other side of that\n"
    "options: -l LANE, -t SECONDS (limit of each wait), -S NS|always (how long to spin), -p (poll: no interrupt)\n"
    "results: 0, 1 failed, 2 wrong use, 3 the peer died\n";

static int complain(const char *text) {
    fprintf(stderr, "guestctl: %s\n", text);
    return GUESTCTL_FAILED;
}

int guestctl_open(struct guest_end *end, const char *channel, const char *role, const struct guestctl_options *options) {
    if (guest_open(end, channel, role, options->lane, options->hear)) {
        complain(guest_error());
        return -1;
    }
    if (options->spin_ns != AS_IT_IS)
        end->end.spin_ns = options->spin_ns;
    return 0;
}

int guestctl_ended(const struct guest_end *end, int64_t result) {
    if (result == SHM_E_CLOSED)
        return 0;
    fprintf(stderr, "guestctl: channel %s: %s\n", end->line.channel, guest_result(end, result));
    return result == SHM_E_GONE ? GUESTCTL_GONE : GUESTCTL_FAILED;
}

/* ---- ls ---------------------------------------------------------------------------------------------------------------- */

static const char *const KINDS[] = {"spsc", "mpsc", "broadcast", "barrier"};

struct listing {
    const struct guestctl_options *options;
    int count;
};

static int show_region(const struct guest_region_line *line, void *context) {
    struct listing *listing = context;
    struct guest_region region;
    if (guest_region_open(&region, line->name, 0))
        return -1;
    if (listing->options->json)
        printf("%s\n    {\"name\": \"%s\", \"device\": \"%s\", \"access\": \"%s\", \"peer\": %u, \"size\": %llu}",
               listing->count ? "," : "", line->name, line->address, line->access, line->peer, (unsigned long long)region.size);
    else
        printf("region  %-16s %s  %s  peer %u  %llu bytes\n", line->name, line->address, line->access, line->peer,
               (unsigned long long)region.size);
    listing->count++;
    guest_region_close(&region);
    return 0;
}

static int show_end(const struct guest_end_line *line, void *context) {
    struct listing *listing = context;
    struct shm_config config = line->config;
    struct guest_region region;
    if (guest_region_open(&region, line->region, 0))
        return -1;
    int failed = !line->told && guest_directory(&region, line->channel, &config);
    guest_region_close(&region);
    if (failed || config.kind > SHM_BARRIER)
        return -1;
    if (listing->options->json)
        printf("%s\n    {\"name\": \"%s\", \"region\": \"%s\", \"kind\": \"%s\", \"role\": \"%s\", \"lane\": %u, "
               "\"lanes\": %u, \"size\": %llu, \"max_message\": %u}",
               listing->count ? "," : "", line->channel, line->region, KINDS[config.kind], line->role, config.lane, config.lanes,
               (unsigned long long)config.size, config.max_message);
    else
        printf("channel %-16s in %s: %s, %s, lane %u of %u, %llu bytes, messages up to %u\n", line->channel, line->region,
               KINDS[config.kind], line->role, config.lane, config.lanes, (unsigned long long)config.size, config.max_message);
    listing->count++;
    return 0;
}

static int list(const struct guestctl_options *options) {
    struct listing listing = {.options = options};
    if (options->json)
        printf("{\n  \"regions\": [");
    int failed = guest_regions(show_region, &listing);
    listing.count = 0;
    if (options->json)
        printf("\n  ],\n  \"channels\": [");
    if (!failed)
        failed = guest_ends(show_end, &listing);
    if (options->json)
        printf("\n  ]\n}\n");
    return failed ? complain(guest_error()) : 0;
}

/* ---- send, recv -------------------------------------------------------------------------------------------------------- */

static int64_t send_pieces(struct guest_end *end, FILE *file, int64_t timeout_ns) {
    size_t room = end->line.config.max_message, size;
    char *piece = malloc(room);
    int64_t result = 0;
    while (piece && !result && (size = fread(piece, 1, room, file)))
        result = end_send(&end->end, piece, size, timeout_ns);
    free(piece);
    return result;
}

static int64_t send_lines(struct guest_end *end, FILE *file, int64_t timeout_ns) {
    char *line = NULL;
    size_t room = 0;
    int64_t result = 0;
    for (ssize_t size; !result && (size = getline(&line, &room, file)) >= 0;) {
        if (size && line[size - 1] == '\n')
            size--;
        result = end_send(&end->end, line, (uint64_t)size, timeout_ns);
    }
    free(line);
    return result;
}

static int send_file(const char *channel, const char *path, const struct guestctl_options *options) {
    struct guest_end end;
    FILE *file = path && strcmp(path, "-") ? fopen(path, "re") : stdin;
    if (!file) {
        fprintf(stderr, "guestctl: %s: cannot be opened: %s\n", path, strerror(errno));
        return GUESTCTL_FAILED;
    }
    if (guestctl_open(&end, channel, "send", options))
        return GUESTCTL_FAILED;
    int64_t result =
        options->raw ? send_pieces(&end, file, options->timeout_ns) : send_lines(&end, file, options->timeout_ns);
    int code = result ? guestctl_ended(&end, result) : 0;
    if (result == SHM_E_CLOSED)
        code = complain("not everything was sent: the receiver closed its end");
    guest_close(&end);
    return code;
}

static int receive(const char *channel, const struct guestctl_options *options) {
    struct guest_end end;
    if (guestctl_open(&end, channel, "receive", options))
        return GUESTCTL_FAILED;
    size_t room = end.line.config.max_message;
    char *message = malloc(room + 1);
    int64_t size = 0;
    for (uint64_t i = 0; message && (!options->count || i < options->count); i++) {
        size = end_receive(&end.end, message, room, options->timeout_ns);
        if (size < 0)
            break;
        message[size] = '\n';
        fwrite(message, 1, (size_t)size + !options->raw, stdout);
        fflush(stdout);
    }
    free(message);
    int code = size < 0 ? guestctl_ended(&end, size) : 0;
    guest_close(&end);
    return code;
}

/* ---- the command line -------------------------------------------------------------------------------------------------- */

static int take_option(struct guestctl_options *options, int option, const char *value) {
    switch (option) {
    case 'p':
        options->hear = 0;
        break;
    case 'r':
        options->raw = 1;
        break;
    case 'j':
        options->json = 1;
        break;
    case 'a':
        options->answer = 1;
        break;
    case 'l':
        options->lane = atoi(value);
        break;
    case 'n':
        options->count = strtoull(value, NULL, 10);
        break;
    case 's':
        options->size = (uint32_t)strtoul(value, NULL, 10);
        break;
    case 't':
        options->timeout_ns = (int64_t)(strtod(value, NULL) * 1e9);
        break;
    case 'S':
        options->spin_ns = strcmp(value, "always") ? strtoull(value, NULL, 10) : END_SPIN_ALWAYS;
        break;
    case 'R': { /* for tests: all folders in one */
        static char sysfs[256], run[256], dev[256];
        snprintf(sysfs, sizeof sysfs, "%s/sys", value);
        snprintf(run, sizeof run, "%s/run", value);
        snprintf(dev, sizeof dev, "%s/dev", value);
        guest_paths = (struct guest_paths){sysfs, run, dev};
        break;
    }
    default:
        return -1;
    }
    return 0;
}

static int usage(void) {
    fputs(USAGE, stderr);
    return GUESTCTL_USAGE;
}

int guestctl_main(int argc, char **argv) {
    struct guestctl_options options = {.hear = 1, .lane = -1, .timeout_ns = -1, .spin_ns = AS_IT_IS, .size = 32};
    for (int option; (option = getopt(argc, argv, "prjal:n:s:t:S:R:")) >= 0;)
        if (take_option(&options, option, optarg))
            return usage();
    char **words = argv + optind;
    int count = argc - optind;
    if (count == 1 && !strcmp(words[0], "ls"))
        return list(&options);
    if ((count == 2 || count == 3) && !strcmp(words[0], "send"))
        return send_file(words[1], words[2], &options);
    if (count == 2 && !strcmp(words[0], "recv"))
        return receive(words[1], &options);
    if (count == 3 && !strcmp(words[0], "bench"))
        return guestctl_bench(&options, words[1], words[2]);
    return usage();
}
