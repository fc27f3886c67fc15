/* A doubly linked list whose links lie inside its members. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct link {
    struct link *prev, *next;
};

#define LIST_EMPTY(head) {&(head), &(head)}
#define container(pointer, type, member) ((type *)((char *)(pointer) - offsetof(type, member)))

static inline bool list_is_empty(const struct link *head) {
    return head->next == head;
}

static inline void list_append(struct link *head, struct link *item) {
    item->prev = head->prev;
    item->next = head;
    head->prev->next = item;
    head->prev = item;
}

/* Harmless for a link that is in no list (all zero) or was removed before. */
static inline void list_remove(struct link *item) {
    if (item->next == NULL) return;
    item->prev->next = item->next;
    item->next->prev = item->prev;
    item->next = item->prev = NULL;
}
