#include "fields.h"

#include "protocol.h"

#include <errno.h>
#include <string.h>

#define FIELD_HEADER 8

/* Both architectures are little-endian, as the protocol is. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the protocol's byte order");

uint16_t load16(const uint8_t *bytes) { uint16_t n; memcpy(&n, bytes, sizeof n); return n; }
uint32_t load32(const uint8_t *bytes) { uint32_t n; memcpy(&n, bytes, sizeof n); return n; }
uint64_t load64(const uint8_t *bytes) { uint64_t n; memcpy(&n, bytes, sizeof n); return n; }
void store16(uint8_t *bytes, uint16_t number) { memcpy(bytes, &number, sizeof number); }
void store32(uint8_t *bytes, uint32_t number) { memcpy(bytes, &number, sizeof number); }
void store64(uint8_t *bytes, uint64_t number) { memcpy(bytes, &number, sizeof number); }

static bool holds_bytes(uint16_t tag) {
    switch (tag) {
    case TAG_BOOT_ID: case TAG_BUILD: case TAG_HOSTNAME: case TAG_USER: case TAG_CWD: case TAG_ENV:
    case TAG_ENTROPY: case TAG_MACHINE_ID: case TAG_MESSAGE: case TAG_ARG: case TAG_NAME:
    case TAG_STAGE: case TAG_PATH: case TAG_TARGET_PATH: case TAG_HOST:
        return true;
    default:
        return false;
    }
}

static bool is_known(uint16_t tag) {
    return tag >= TAG_VERSION && tag <= TAG_CPUS;
}

bool fields_next(struct fields *rest, struct field *field) {
    if (rest->length < FIELD_HEADER) return false;
    size_t length = load32(rest->bytes + 4);
    if (length > rest->length - FIELD_HEADER) return false;
    field->tag = load16(rest->bytes);
    field->bytes = rest->bytes + FIELD_HEADER;
    field->length = length;
    rest->bytes += FIELD_HEADER + length;
    rest->length -= FIELD_HEADER + length;
    return true;
}

bool fields_are_whole(struct fields fields) {
    struct field field;
    while (fields.length > 0) {
        const uint8_t *header = fields.bytes;
        if (!fields_next(&fields, &field) || load16(header + 2) != 0) return false;
        if (is_known(field.tag) && !holds_bytes(field.tag) && field.length != 8) return false;
    }
    return true;
}

bool fields_find(struct fields fields, uint16_t tag, struct field *field) {
    while (fields_next(&fields, field)) {
        if (field->tag == tag) return true;
    }
    return false;
}

uint64_t fields_number(struct fields fields, uint16_t tag, uint64_t otherwise) {
    struct field field;
    if (!fields_find(fields, tag, &field) || field.length != 8) return otherwise;
    return load64(field.bytes);
}

int fields_text(struct fields fields, uint16_t tag, char *text, size_t size) {
    struct field field;
    if (!fields_find(fields, tag, &field)) return ENOENT;
    if (field.length >= size) return ENAMETOOLONG;
    if (field.length > 0 && memchr(field.bytes, 0, field.length) != NULL) return EINVAL;
    if (field.length > 0) memcpy(text, field.bytes, field.length);
    text[field.length] = 0;
    return 0;
}

void put_bytes(struct builder *builder, uint16_t tag, const void *bytes, size_t length) {
    if (builder->full || length > UINT32_MAX || builder->size - builder->length < FIELD_HEADER + length) {
        builder->full = true;
        return;
    }
    uint8_t *field = builder->bytes + builder->length;
    store16(field, tag);
    store16(field + 2, 0);
    store32(field + 4, (uint32_t)length);
    if (length > 0) memcpy(field + FIELD_HEADER, bytes, length);
    builder->length += FIELD_HEADER + length;
}

void put_number(struct builder *builder, uint16_t tag, uint64_t number) {
    put_bytes(builder, tag, &number, sizeof number);
}

void put_text(struct builder *builder, uint16_t tag, const char *text) {
    put_bytes(builder, tag, text, strlen(text));
}
