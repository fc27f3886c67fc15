#include "connection.h"

#include "fields.h"
#include "loop.h"
#include "port.h"
#include "protocol.h"
#include "stream.h"

#include <string.h>
#include <sys/random.h>

#define REFUSALS 64
/* Frames of one turn, so that a busy host does not keep the loop from the rest. */
#define TURN 32
#if defined(__x86_64__)
#define MACHINE "x86_64"
#else
#define MACHINE "aarch64"
#endif

/* On a page's border, so that what a virtio port gives at a time fills one page, and one that was
 * touched before: the copy of a guest attaches without a page fault. */
static _Alignas(4096) uint8_t input[2 * MAX_FRAME];
static size_t input_length;
static uint64_t zeros; /* zero bytes in a row before the input's first */

static bool held_back; /* whole frames wait in the input for room to refuse them */

static bool attached, broken, hello_due, attached_due, has_holder;
static uint8_t holder[NONCE_SIZE], nonce[NONCE_SIZE], boot_id[16];
static const char *goaway;
static struct { uint32_t stream, status; } refusals[REFUSALS];
static size_t refusal_count;

void connection_open(void) {
    /* A short read is possible before the generator is seeded; zeros still name a boot. */
    if (getrandom(boot_id, sizeof boot_id, GRND_NONBLOCK) < 0) memset(boot_id, 0, sizeof boot_id);
}

static void forget_input(void) {
    input_length = 0;
    zeros = 0;
    broken = held_back = false;
}

void connection_up(void) {
    forget_input();
    hello_due = true;
}

void connection_down(void) {
    forget_input();
    frames_forget();
    attached = attached_due = hello_due = false;
    goaway = NULL;
    refusal_count = 0;
    streams_stand_still();
}

bool connection_fail(const char *sentence) {
    if (!broken) goaway = sentence;
    broken = true;
    attached = false;
    streams_stand_still();
    return false;
}

void connection_refuse(uint32_t stream, uint32_t status) {
    refusals[refusal_count].stream = stream;
    refusals[refusal_count++].status = status;
}

static bool attach(const struct frame *frame) {
    if (frame->length != 2 * NONCE_SIZE + 2) return connection_fail("ATTACH of a wrong length");
    if (load16(frame->payload + 2 * NONCE_SIZE) != PROTOCOL_VERSION) {
        return connection_fail("this agent speaks version 1 of the protocol only");
    }
    memcpy(nonce, frame->payload, NONCE_SIZE);
    const uint8_t *from = frame->payload + NONCE_SIZE;
    bool same = has_holder && memcmp(holder, from, NONCE_SIZE) == 0;
    memcpy(holder, from, NONCE_SIZE);
    if (same) streams_stand_still();
    else if (has_holder) streams_detach_all();
    has_holder = attached = attached_due = true;
    return true;
}

bool connection_frame(const struct frame *frame) {
    if (frame->type == FRAME_ATTACH) return attach(frame);
    if (frame->type == FRAME_GOAWAY) {
        attached = false;
        streams_stand_still();
        return true;
    }
    if (!attached) return connection_fail("a frame before ATTACH");
    /* A refusal needs its place before the request is read. */
    return stream_frame(frame) && refusal_count < REFUSALS;
}

/* Takes bytes off the front of the input, and notes how many zeros in a row they end with. */
static void consume(size_t length) {
    size_t n = 0;
    while (n < length && input[length - 1 - n] == 0) n++;
    zeros = n == length ? zeros + n : n;
    input_length -= length;
    if (input_length > 0 && length > 0) memmove(input, input + length, input_length);
}

/* After a broken frame: drop all up to the end of a run of zeros as long as the longest frame. */
static void resynchronise(void) {
    uint64_t run = zeros;
    size_t i = 0;
    while (i < input_length && run < MAX_FRAME) run = input[i++] == 0 ? run + 1 : 0;
    broken = run < MAX_FRAME;
    consume(i);
}

/* The zeros that a host begins with which takes the guest over: dropped as they come and a word at
 * a time, so that they neither fill the input's pages nor go through the parser. */
static void skip_padding(void) {
    size_t n = 0;
    for (uint64_t word = 0; n + sizeof word <= input_length; n += sizeof word) {
        memcpy(&word, input + n, sizeof word);
        if (word != 0) break;
    }
    while (n < input_length && input[n] == 0) n++;
    if (n == 0) return;
    zeros += n;
    input_length -= n;
    if (input_length > 0) memmove(input, input + n, input_length);
}

static void receive(void) {
    /* A virtio port gives at most one page at a time. */
    for (size_t taken = 0; port_can_read() && input_length < MAX_FRAME && taken < MAX_FRAME;) {
        size_t n = port_read(input + input_length, sizeof input - input_length);
        input_length += n;
        taken += n;
        if (!broken) skip_padding();
    }
    const char *error;
    do {
        if (broken) resynchronise();
        if (broken || refusal_count == REFUSALS) break;
        size_t used = frames_parse(input, input_length, &error);
        if (error != NULL) connection_fail(error);
        /* A wrong header is over with its first byte, lest the zeros before it count again. */
        consume(error != NULL ? used + 1 : used);
    } while (broken); /* what makes the connection whole again may be in the input already */
    held_back = refusal_count == REFUSALS;
}

static bool send_hello(void) {
    uint8_t bytes[128];
    struct builder hello = {bytes, 0, sizeof bytes, false};
    put_number(&hello, TAG_VERSION, PROTOCOL_VERSION);
    put_number(&hello, TAG_MIN_VERSION, PROTOCOL_VERSION);
    put_bytes(&hello, TAG_BOOT_ID, boot_id, sizeof boot_id);
    put_number(&hello, TAG_WINDOW, DEFAULT_WINDOW);
    put_text(&hello, TAG_BUILD, "nova-agent 1 " MACHINE);
    uint8_t *payload = frames_add(FRAME_HELLO, 0, 0, hello.length);
    if (payload == NULL) return false;
    memcpy(payload, bytes, hello.length);
    return true;
}

static bool send_attached(void) {
    uint8_t bytes[128];
    struct builder fields = {bytes, 0, sizeof bytes, false};
    put_bytes(&fields, TAG_BOOT_ID, boot_id, sizeof boot_id);
    put_number(&fields, TAG_NEXT_STREAM, streams_next());
    put_number(&fields, TAG_WINDOW, DEFAULT_WINDOW);
    uint8_t *payload = frames_add(FRAME_ATTACHED, 0, 0, 8 + NONCE_SIZE + fields.length);
    if (payload == NULL) return false;
    memcpy(payload, ATTACH_MAGIC, 8);
    memcpy(payload + 8, nonce, NONCE_SIZE);
    memcpy(payload + 8 + NONCE_SIZE, bytes, fields.length);
    return true;
}

static bool send_own(void) {
    if (hello_due && !send_hello()) return false;
    hello_due = false;
    if (goaway != NULL) {
        uint8_t *payload = frames_add(FRAME_GOAWAY, 0, 0, strlen(goaway));
        if (payload == NULL) return false;
        memcpy(payload, goaway, strlen(goaway));
        goaway = NULL;
    }
    if (attached_due && !send_attached()) return false;
    attached_due = false;
    while (refusal_count > 0) {
        uint8_t *payload = frames_add(FRAME_REPLY, 0, refusals[refusal_count - 1].stream, 4);
        if (payload == NULL) return false;
        store32(payload, refusals[--refusal_count].status);
    }
    return true;
}

bool connection_serve(void) {
    if (port_can_read() || (held_back && refusal_count < REFUSALS)) receive();
    streams_tidy();
    bool idle = false;
    if (send_own()) {
        int turn = TURN;
        while (turn > 0 && streams_send()) turn--;
        idle = turn > 0;
    }
    frames_flush();
    bool can_receive = (port_can_read() || held_back) && refusal_count < REFUSALS;
    return can_receive || (!idle && port_can_write());
}

bool connection_is_flushed(void) {
    return !streams_have_something() && refusal_count == 0 && frames_flush();
}
