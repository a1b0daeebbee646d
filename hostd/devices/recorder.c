/* recorder.c: interrupts without a VM (interrupts.h). */
#include "interrupts.h"

int interrupt_recorder_open(struct interrupt_recorder *recorder) {
    recorder->count = 0;
    return -pthread_mutex_init(&recorder->lock, NULL);
}

void interrupt_recorder_close(struct interrupt_recorder *recorder) {
    pthread_mutex_destroy(&recorder->lock);
}

static int keep(void *ctx, struct interrupt_record record) {
    struct interrupt_recorder *recorder = ctx;
    pthread_mutex_lock(&recorder->lock);
    recorder->records[recorder->count++ % INTERRUPT_RECORDS] = record;
    pthread_mutex_unlock(&recorder->lock);
    return 0;
}

static int msi(void *ctx, uint64_t address, uint32_t data) {
    return keep(ctx, (struct interrupt_record){.kind = RECORD_MSI, .number = data, .address = address});
}

static int line(void *ctx, uint32_t gsi, int level) {
    return keep(ctx, (struct interrupt_record){.kind = RECORD_LINE, .number = gsi, .on = level != 0});
}

static int route(void *ctx, uint32_t gsi, uint64_t address, uint32_t data) {
    return keep(ctx, (struct interrupt_record){.kind = RECORD_ROUTE, .number = gsi, .address = address, .fd = data});
}

static int irqfd(void *ctx, int fd, uint32_t gsi, int on) {
    return keep(ctx, (struct interrupt_record){.kind = RECORD_IRQFD, .number = gsi, .fd = fd, .on = on != 0});
}

static int doorbell(void *ctx, const struct doorbell *wanted, int on) {
    return keep(ctx, (struct interrupt_record){
        .kind = RECORD_DOORBELL,
        .number = wanted->matched ? wanted->match : UINT64_MAX,
        .address = wanted->address,
        .fd = wanted->fd,
        .on = on != 0,
    });
}

const struct interrupt_ops recorder_interrupt_ops = {
    .msi = msi,
    .line = line,
    .route = route,
    .irqfd = irqfd,
    .doorbell = doorbell,
};
