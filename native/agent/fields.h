/* The fields of a payload: read and written. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct fields {
    const uint8_t *bytes;
    size_t length;
};

struct field {
    uint16_t tag;
    const uint8_t *bytes;
    size_t length;
};

/* Every header and length in order, and each known number eight bytes long. */
bool fields_are_whole(struct fields fields);
/* Takes the next field off the front; false at the end. */
bool fields_next(struct fields *rest, struct field *field);
bool fields_find(struct fields fields, uint16_t tag, struct field *field);
uint64_t fields_number(struct fields fields, uint16_t tag, uint64_t otherwise);
/* Copies text with a NUL behind it. 0; ENOENT: no such field; EINVAL: a NUL within;
 * ENAMETOOLONG: larger than `size` holds. */
int fields_text(struct fields fields, uint16_t tag, char *text, size_t size);

/* Writes into memory of a fixed size; `full` once something did not fit. */
struct builder {
    uint8_t *bytes;
    size_t length, size;
    bool full;
};

void put_number(struct builder *builder, uint16_t tag, uint64_t number);
void put_bytes(struct builder *builder, uint16_t tag, const void *bytes, size_t length);
void put_text(struct builder *builder, uint16_t tag, const char *text);

uint16_t load16(const uint8_t *bytes);
uint32_t load32(const uint8_t *bytes);
uint64_t load64(const uint8_t *bytes);
void store16(uint8_t *bytes, uint16_t number);
void store32(uint8_t *bytes, uint32_t number);
void store64(uint8_t *bytes, uint64_t number);
