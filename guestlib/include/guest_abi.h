/*
 * guest_abi.h: the whole contract between hostd and a unikernel guest.
 *
 * Compiled by both sides: by the guest's runtime, and (through cffi) by the VMM. No dependencies but <stdint.h>.
 * A guest starts in ring 3 of 64-bit mode with RDI = address of struct guest_info, RSP = top of its stack (16-byte
 * aligned, minus 8, as after a call), every address identity-mapped (virtual = guest physical), SSE and AVX on.
 * It may do port output; nothing else reaches the host. The page in docs is docs/guest-contract.md.
 */
#ifndef GUEST_ABI_H
#define GUEST_ABI_H

#include <stdint.h>

#define GUEST_ABI_MAGIC 0x74736f68 /* "host" */
#define GUEST_ABI_VERSION 5

/* Ports. */
#define GUEST_PORT_FAULT 0xf4      /* 8-bit: exception vector; written by the ring-0 stubs. */
#define GUEST_PORT_CALL 0x510      /* 32-bit: a call number; its arguments lie in the call page. */
#define GUEST_PORT_DOORBELL 0x514  /* 32-bit: a bell number; an ioeventfd, so no VMM process runs. */

/* The address map below 1 MiB. Page 0 is never mapped. */
#define GUEST_CALL_PAGE 0x1000     /* struct guest_call; the guest's to write */
#define GUEST_SYSTEM_PAGE 0x2000   /* GDT, TSS, IDT and its stubs; ring 0 only */
#define GUEST_FAULT_STACK 0x3000   /* one page: where ring 0 gets its exception frames; ring 0 only */
#define GUEST_TABLES 0x10000       /* page tables, up to GUEST_INFO; ring 0 only */
#define GUEST_INFO 0x60000         /* struct guest_info and its tables, up to the VGA hole; read-only */
#define GUEST_INFO_SIZE 0x3e000
#define GUEST_PLUGS 0x9e000         /* struct guest_plugs: what was added while the guest runs; read-only */
#define GUEST_PLUGS_SIZE 0x2000
#define GUEST_IMAGE 0x100000       /* lowest address of a program */

/* Calls: number in guest_call.number and on the port; results in guest_call.result and .args. */
#define GUEST_CALL_EXIT 1          /* args[0] = exit code, 0..255. Does not return. */
#define GUEST_CALL_CONSOLE 2       /* args[0] = bytes of data to write to the console */
#define GUEST_CALL_REPORT 3        /* args: kind, value (or text size), name size; data = name, then text */
#define GUEST_CALL_TIME 4          /* out: args[0] = the host's CLOCK_MONOTONIC, args[1] = CLOCK_REALTIME, in ns */
#define GUEST_CALL_FENCE 5         /* a full memory barrier on every CPU that runs a peer: sleep protocol, docs/rings.md */
#define GUEST_CALL_WAIT 6          /* args[0] = time limit in ns (~0: none), args[1] = how many bells (0..64), data = their
                                      numbers (uint32_t each); out: args[0] = bit i set if bell i rang, 0 at the limit */
#define GUEST_CALL_SLEEP 7         /* FENCE, then, unless a word has changed, WAIT: arguments and results of WAIT, and
                                      args[2] = how many words (0..64), data + GUEST_LOOKS = struct guest_look of each;
                                      args[0] = 0 as well when one has changed */

#define GUEST_CALL_GIVE_BACK 8     /* args[0] = address, args[1] = bytes, whole pages of this guest's own memory (no region,
                                      file or device; not locked): they go back to the host, and what they hold is lost;
                                      of memory in huge pages, only whole ones */

#define GUEST_CALL_GIVE_UP 9       /* args[0] = address of a struct guest_plug: it is gone when the call returns */

#define GUEST_REPORT_INT 0         /* value: int64_t */
#define GUEST_REPORT_FLOAT 1       /* value: the bits of a double */
#define GUEST_REPORT_TEXT 2        /* value: size of the text in bytes */

#define GUEST_OK 0
#define GUEST_EINVAL (-22)         /* an argument out of range */
#define GUEST_ENOSYS (-38)         /* no such call */

#define GUEST_CALL_DATA 4032       /* bytes of data in the call page */
#define GUEST_WAIT_BELLS 64        /* bells in one wait */
#define GUEST_WAIT_LOOKS 64        /* words in one SLEEP */
#define GUEST_LOOKS 256            /* where they lie in the call page's data, behind the bells */
#define GUEST_NO_LIMIT 0xffffffffffffffff

/* A word that SLEEP looks at: 4 bytes of the guest's memory, aligned, and what it held when the guest looked last. */
struct guest_look {
    uint64_t address;
    uint32_t value;
    uint32_t reserved;
};

struct guest_call {
    uint32_t number;
    int32_t result;
    uint64_t args[4];
    uint8_t reserved[24];
    uint8_t data[4032];
};

/* A string or table in the info area: offset from struct guest_info; size in bytes or count in items. */
struct guest_span {
    uint32_t offset;
    uint32_t size;
};

#define GUEST_NAME_SIZE 48         /* bytes of a region's or channel's name, the closing zero included */

#define GUEST_READ_ONLY 1          /* region flags: mapped read-only */
#define GUEST_RAW 2                /* no header and directory: the bytes are the user's own */

struct guest_region {
    char name[48];
    uint64_t address;
    uint64_t size;
    uint32_t flags;
    uint32_t reserved;
};

#define GUEST_ROLE_SEND 0
#define GUEST_ROLE_RECEIVE 1
#define GUEST_ROLE_JOIN 2

/* One end of a channel: the guest's trusted copy of what the region's directory says too. */
struct guest_channel {
    char name[48];
    uint32_t region;               /* index in the regions' table */
    uint32_t kind;                 /* enum shm_kind */
    uint32_t role;
    uint32_t flags;                /* SHM_FENCED, SHM_ALWAYS_RING */
    uint64_t offset;               /* of the channel in its region */
    uint64_t size;                 /* capacity of a ring in bytes */
    uint32_t max_message;          /* bytes */
    uint32_t lanes;                /* senders of an mpsc, parties of a barrier */
    uint32_t lane;                 /* this end's number among them */
    uint32_t data_bell;            /* bell numbers for GUEST_PORT_DOORBELL and GUEST_CALL_WAIT */
    uint32_t space_bell;
    uint32_t reserved;
};

/* Another guest of a network. */
struct guest_host {
    struct guest_span name;        /* zero-terminated */
    uint32_t address;              /* IPv4, as a number: 10.0.0.1 is 0x0a000001 */
    uint32_t reserved;
};

/* This guest's port on a network: two rings of frames, and what it is called there. */
struct guest_network {
    char name[48];
    uint8_t mac[6];
    uint16_t prefix;               /* bits of the subnet; 0 without an address */
    uint32_t address;              /* IPv4; 0: none */
    uint32_t gateway;              /* IPv4, in the subnet; 0: none */
    uint32_t mtu;                  /* bytes behind the Ethernet header */
    uint32_t region;               /* index in the regions' table */
    uint32_t out;                  /* indices in the channels' table: frames to the network, */
    uint32_t in;                   /* and from it */
    struct guest_span hosts;       /* count of struct guest_host: the others with an address there */
};

struct guest_range {
    uint64_t address;
    uint64_t size;
};

/* A picture in memory: rows of pixels, a uint32_t each, 0x00RRGGBB. */
struct guest_framebuffer {
    uint64_t address;              /* 0: there is none */
    uint32_t width;                /* pixels */
    uint32_t height;
    uint32_t stride;               /* bytes from one row to the next */
    uint32_t reserved;
};

#define GUEST_PLUG_MEMORY 1        /* kinds: zeroed memory of the guest's own, */
#define GUEST_PLUG_REGION 2        /* a region, */
#define GUEST_PLUG_FRAMEBUFFER 3   /* a picture */

#define GUEST_PLUG_READ_ONLY 1     /* flags: as of a region, */
#define GUEST_PLUG_RAW 2
#define GUEST_PLUG_WANTED 4        /* the host wants it back: GUEST_CALL_GIVE_UP */

/* Something that was added to the guest while it runs. */
struct guest_plug {
    char name[48];
    uint64_t address;
    uint64_t size;
    uint32_t kind;
    uint32_t flags;
    uint32_t width;                /* of a picture, as in struct guest_framebuffer */
    uint32_t height;
    uint32_t stride;
    uint32_t reserved;
};

#define GUEST_PLUGS_MOST 64

/* At GUEST_PLUGS. The host changes it only while the vCPU stands still, and then rings the bell whose number is
   guest_info.bells, which the guest can wait for but not ring. */
struct guest_plugs {
    uint64_t generation;           /* another number after each change; 0: there was none yet */
    uint32_t count;
    uint32_t reserved;
    struct guest_plug plugs[64];
};

struct guest_info {
    uint32_t magic;
    uint32_t version;
    uint32_t size;                 /* of the whole info area in use */
    uint32_t bells;                /* bell numbers are 0 .. bells-1 */
    uint64_t tsc_khz;              /* 0: unknown, every clock read is a call */
    uint64_t memory_size;          /* RAM given to this guest, in bytes */
    struct guest_range image;
    struct guest_range stack;      /* the page below it is a guard */
    uint8_t seed[32];              /* random, this start's own */
    struct guest_span name;        /* zero-terminated */
    struct guest_span cluster;
    struct guest_span args;        /* count of struct guest_span, each a zero-terminated string */
    struct guest_span env;         /* likewise, NAME=value */
    struct guest_span heap;        /* count of struct guest_range: RAM free for the program's own use */
    struct guest_span regions;     /* count of struct guest_region */
    struct guest_span channels;    /* count of struct guest_channel */
    struct guest_span networks;    /* count of struct guest_network */
    struct guest_framebuffer framebuffer;
    uint64_t generation;           /* 0: booted; else made from a template, and another number in each such guest */
};

#endif
