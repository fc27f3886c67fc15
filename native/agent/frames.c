#include "frames.h"

#include "connection.h"
#include "fields.h"
#include "port.h"
#include "protocol.h"

#include <string.h>

/* What waits for the port: small frames that leave in one write, or the rest of a frame that a
 * vsock connection took in part (a virtio port takes a write whole or not at all). */
static uint8_t waiting[PORT_PIECE];
static size_t waiting_start, waiting_end;

static const char *header_error(const struct frame *frame, uint16_t zero, uint32_t length) {
    if (zero != 0) return "a header's zero field is not zero";
    if (length > MAX_PAYLOAD) return "a payload above the limit";
    bool of_stream = true, of_channel = false;
    switch (frame->type) {
    case FRAME_ATTACH: case FRAME_GOAWAY:
        of_stream = false;
        break;
    case FRAME_DATA: case FRAME_END: case FRAME_CREDIT:
        of_channel = true;
        break;
    case FRAME_REQUEST: case FRAME_RELEASE: case FRAME_CANCEL: case FRAME_RESUME: case FRAME_DETACH:
        break;
    default:
        return "an unknown frame type";
    }
    if (of_stream != (frame->stream != 0)) return "a stream number where none belongs, or none where one does";
    if (!of_channel && frame->channel != 0) return "a channel number where none belongs";
    return NULL;
}

size_t frames_parse(const uint8_t *bytes, size_t length, const char **error) {
    size_t used = 0;
    *error = NULL;
    while (used < length) {
        const uint8_t *header = bytes + used;
        if (header[0] == FRAME_PAD) {
            used++;
            continue;
        }
        if (length - used < HEADER_SIZE) break;
        uint32_t size = load32(header + 8);
        struct frame frame = {header[0], header[1], load32(header + 4), header + HEADER_SIZE, size};
        *error = header_error(&frame, load16(header + 2), size);
        if (*error != NULL || length - used - HEADER_SIZE < size) break;
        bool go_on = connection_frame(&frame);
        used += HEADER_SIZE + size;
        if (!go_on) break;
    }
    return used;
}

void frame_write_header(uint8_t *header, uint8_t type, uint8_t channel, uint32_t stream, size_t length) {
    header[0] = type;
    header[1] = channel;
    store16(header + 2, 0);
    store32(header + 4, stream);
    store32(header + 8, (uint32_t)length);
}

uint8_t *frames_add(uint8_t type, uint8_t channel, uint32_t stream, size_t length) {
    if (sizeof waiting - waiting_end < HEADER_SIZE + length && !frames_flush()) return NULL;
    if (sizeof waiting - waiting_end < HEADER_SIZE + length) return NULL;
    uint8_t *frame = waiting + waiting_end;
    frame_write_header(frame, type, channel, stream, length);
    waiting_end += HEADER_SIZE + length;
    return frame + HEADER_SIZE;
}

bool frames_flush(void) {
    while (waiting_start < waiting_end) {
        if (!port_can_write()) return false;
        waiting_start += port_write(waiting + waiting_start, waiting_end - waiting_start);
    }
    waiting_start = waiting_end = 0;
    return true;
}

bool frames_write(const uint8_t *frame, size_t length) {
    if (length > PORT_PIECE || !frames_flush() || !port_can_write()) return false;
    size_t n = port_write(frame, length);
    if (n == 0) return false;
    if (n < length) {
        memcpy(waiting, frame + n, length - n);
        waiting_end = length - n;
    }
    return true;
}

void frames_forget(void) {
    waiting_start = waiting_end = 0;
}
