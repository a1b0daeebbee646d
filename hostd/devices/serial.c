/* serial.c: see serial.h. Registers as in the PC16550D data sheet, 8.0; the transmitter takes no time. */
#include "serial.h"
#include "state.h"

#include <errno.h>
#include <stdlib.h>

enum { RBR = 0, THR = 0, DLL = 0, IER = 1, DLM = 1, IIR = 2, FCR = 2, LCR = 3, MCR = 4, LSR = 5, MSR = 6, SCR = 7 };
enum { PORTS = 8 };
enum { IER_RECEIVED = 1, IER_EMPTY = 2, IER_LINE = 4, IER_MODEM = 8, IER_ALL = 15 };
enum { IIR_NONE = 1, IIR_MODEM = 0, IIR_EMPTY = 2, IIR_RECEIVED = 4, IIR_LINE = 6, IIR_TIMEOUT = 12, IIR_FIFOS = 0xc0 };
enum { FCR_ENABLE = 1, FCR_CLEAR_RECEIVED = 2 };
enum { LCR_DIVISOR = 0x80 };
enum { MCR_LOOPBACK = 0x10, MCR_ALL = 0x1f };
enum { LSR_READY = 1, LSR_OVERRUN = 2, LSR_EMPTY = 0x20, LSR_IDLE = 0x40 };
enum { MSR_CTS = 0x10, MSR_DSR = 0x20, MSR_RI = 0x40, MSR_DCD = 0x80 };
enum { FIFO = 16 };

struct serial {
    pthread_mutex_t lock;
    struct machine *machine;
    struct terminal *terminal;
    uint32_t gsi;
    int level;                 /* of the interrupt line */
    int empty_pending;         /* the transmitter has become empty, and the guest doesn't know */
    int overrun;
    uint8_t ier, fcr, lcr, mcr, scr, dll, dlm, msr_changes;
    uint8_t fifo[FIFO];
    uint32_t start, count;
};

static uint32_t depth(const struct serial *serial) {
    return serial->fcr & FCR_ENABLE ? FIFO : 1;
}

static uint8_t modem_status(const struct serial *serial) {
    /* In loopback the outputs RTS, DTR, OUT1, OUT2 are the inputs CTS, DSR, RI, DCD; otherwise a peer is there. */
    if (!(serial->mcr & MCR_LOOPBACK))
        return MSR_CTS | MSR_DSR | MSR_DCD;
    uint8_t outputs = serial->mcr;
    return (uint8_t)((outputs & 2 ? MSR_CTS : 0) | (outputs & 1 ? MSR_DSR : 0) | (outputs & 4 ? MSR_RI : 0) |
                     (outputs & 8 ? MSR_DCD : 0));
}

/* The interrupt of the highest priority. */
static uint8_t interrupt(const struct serial *serial) {
    static const uint8_t triggers[] = {1, 4, 8, 14};
    if ((serial->ier & IER_LINE) && serial->overrun)
        return IIR_LINE;
    if ((serial->ier & IER_RECEIVED) && serial->count)
        return serial->fcr & FCR_ENABLE && serial->count < triggers[serial->fcr >> 6] ? IIR_TIMEOUT : IIR_RECEIVED;
    if ((serial->ier & IER_EMPTY) && serial->empty_pending)
        return IIR_EMPTY;
    if ((serial->ier & IER_MODEM) && serial->msr_changes)
        return IIR_MODEM;
    return IIR_NONE;
}

static void update(struct serial *serial) {
    int level = interrupt(serial) != IIR_NONE;
    if (level != serial->level)
        interrupts_line(&serial->machine->interrupts, serial->gsi, level);
    serial->level = level;
}

static void receive(struct serial *serial, uint8_t byte) {
    if (serial->count >= depth(serial))
        serial->overrun = 1;
    else
        serial->fifo[(serial->start + serial->count++) % FIFO] = byte;
}

static uint8_t take_received(struct serial *serial) {
    if (!serial->count)
        return 0;
    uint8_t byte = serial->fifo[serial->start];
    serial->start = (serial->start + 1) % FIFO;
    if (!--serial->count)
        terminal_more(serial->terminal);
    return byte;
}

static void transmit(struct serial *serial, uint8_t byte) {
    if (serial->mcr & MCR_LOOPBACK)
        receive(serial, byte);
    else
        terminal_write(serial->terminal, &byte, 1);
    serial->empty_pending = 1;
}

static uint8_t read_register(struct serial *serial, uint64_t number) {
    uint8_t value;
    switch (number) {
    case RBR:
        return serial->lcr & LCR_DIVISOR ? serial->dll : take_received(serial);
    case IER:
        return serial->lcr & LCR_DIVISOR ? serial->dlm : serial->ier;
    case IIR:
        value = interrupt(serial);
        if (value == IIR_EMPTY)
            serial->empty_pending = 0;
        return value | (serial->fcr & FCR_ENABLE ? IIR_FIFOS : 0);
    case LCR:
        return serial->lcr;
    case MCR:
        return serial->mcr;
    case LSR:
        value = (uint8_t)(LSR_EMPTY | LSR_IDLE | (serial->count ? LSR_READY : 0) | (serial->overrun ? LSR_OVERRUN : 0));
        serial->overrun = 0;
        return value;
    case MSR:
        value = modem_status(serial) | serial->msr_changes;
        serial->msr_changes = 0;
        return value;
    default:
        return serial->scr;
    }
}

static void control_fifos(struct serial *serial, uint8_t value) {
    if ((value ^ serial->fcr) & FCR_ENABLE || value & FCR_CLEAR_RECEIVED) {
        serial->start = serial->count = 0;
        terminal_more(serial->terminal);
    }
    serial->fcr = value & FCR_ENABLE ? value & 0xc9 : 0;
}

static void write_register(struct serial *serial, uint64_t number, uint8_t value) {
    uint8_t before;
    switch (number) {
    case THR:
        if (serial->lcr & LCR_DIVISOR)
            serial->dll = value;
        else
            transmit(serial, value);
        break;
    case IER:
        if (serial->lcr & LCR_DIVISOR) {
            serial->dlm = value;
            break;
        }
        /* Allowing the interrupt of an empty transmitter raises it. */
        if (~serial->ier & value & IER_EMPTY)
            serial->empty_pending = 1;
        if (~serial->ier & value & IER_RECEIVED)
            terminal_more(serial->terminal);
        serial->ier = value & IER_ALL;
        break;
    case FCR:
        control_fifos(serial, value);
        break;
    case LCR:
        serial->lcr = value;
        break;
    case MCR:
        before = modem_status(serial);
        serial->mcr = value & MCR_ALL;
        before ^= modem_status(serial);
        serial->msr_changes |= before >> 4;
        if (!(value & MCR_LOOPBACK))
            terminal_more(serial->terminal);
        break;
    case SCR:
        serial->scr = value;
        break;
    default: /* LSR and MSR are for reading. */
        break;
    }
}

/* A wider access is several: byte by byte, as on the ISA bus. */
static uint64_t serial_read(void *device, uint64_t offset, uint32_t size) {
    struct serial *serial = device;
    uint64_t value = 0;
    pthread_mutex_lock(&serial->lock);
    for (uint32_t i = 0; i < size; i++)
        value |= (uint64_t)read_register(serial, offset + i) << (8 * i);
    update(serial);
    pthread_mutex_unlock(&serial->lock);
    return value;
}

static void serial_write(void *device, uint64_t offset, uint64_t value, uint32_t size) {
    struct serial *serial = device;
    pthread_mutex_lock(&serial->lock);
    for (uint32_t i = 0; i < size; i++)
        write_register(serial, offset + i, (uint8_t)(value >> (8 * i)));
    update(serial);
    pthread_mutex_unlock(&serial->lock);
}

/* --- what is typed --- */

/* Linux allows the receiver's interrupt while a program has the port open. Before, what comes would be thrown away. */
static int serial_listening(void *device) {
    struct serial *serial = device;
    pthread_mutex_lock(&serial->lock);
    int listening = !(serial->mcr & MCR_LOOPBACK) && (serial->ier & IER_RECEIVED);
    pthread_mutex_unlock(&serial->lock);
    return listening;
}

static uint32_t serial_room(void *device) {
    struct serial *serial = device;
    pthread_mutex_lock(&serial->lock);
    uint32_t room = depth(serial) > serial->count ? depth(serial) - serial->count : 0;
    pthread_mutex_unlock(&serial->lock);
    return room;
}

static void serial_take(void *device, const uint8_t *bytes, uint32_t size) {
    struct serial *serial = device;
    pthread_mutex_lock(&serial->lock);
    for (uint32_t i = 0; i < size; i++)
        receive(serial, bytes[i]);
    update(serial);
    pthread_mutex_unlock(&serial->lock);
}

static void serial_state(void *device, struct state *state) {
    struct serial *serial = device;
    pthread_mutex_lock(&serial->lock);
    uint8_t *const registers[] = {&serial->ier, &serial->fcr, &serial->lcr, &serial->mcr, &serial->scr, &serial->dll,
                                  &serial->dlm, &serial->msr_changes};
    for (uint32_t i = 0; i < sizeof registers / sizeof *registers; i++)
        state_bytes(state, registers[i], 1);
    STATE(state, serial->empty_pending);
    STATE(state, serial->overrun);
    STATE(state, serial->fifo);
    STATE(state, serial->start);
    STATE(state, serial->count);
    if (serial->start >= FIFO || serial->count > FIFO) {
        state_wrong(state, "the serial port's buffer can't hold what is in it");
        serial->start = serial->count = 0;
    }
    if (!state->saving && state_fine(state)) {
        serial->ier &= IER_ALL;
        serial->mcr &= MCR_ALL;
        update(serial);
    }
    pthread_mutex_unlock(&serial->lock);
}

static void serial_close(void *device) {
    struct serial *serial = device;
    pthread_mutex_destroy(&serial->lock);
    free(serial);
}

int serial_add(struct machine *machine, uint16_t port, uint32_t gsi, struct terminal *terminal) {
    struct serial *serial = calloc(1, sizeof *serial);
    if (!serial)
        return -ENOMEM;
    *serial = (struct serial){.machine = machine, .terminal = terminal, .gsi = gsi, .dll = 1};
    struct bus_range ports = {
        .address = port, .size = PORTS, .read = serial_read, .write = serial_write, .device = serial,
    };
    struct machine_device device = {.name = "serial", .device = serial, .close = serial_close, .state = serial_state};
    int error = -pthread_mutex_init(&serial->lock, NULL);
    if (error) {
        free(serial);
        return error;
    }
    if ((error = bus_add(&machine->ports, &ports)) || (error = machine_add(machine, &device))) {
        bus_remove(&machine->ports, port);
        serial_close(serial);
        return error;
    }
    return terminal_add_input(terminal, &(struct terminal_input){
        .device = serial, .listening = serial_listening, .room = serial_room, .take = serial_take,
    });
}
