/* lists.c -- LIST from a file. See lists.h. */
#include "modules/lists.h"

#include <strings.h>

enum { FILE_LIMIT = 16 << 20, LISTS_NEAR = 256 };

static const char *find(json_t *lists, const char *query) {
    while (*query == ' ') query++;
    size_t n = strlen(query);
    while (n && query[n - 1] == ' ') n--;
    const char *key;
    json_t *items;
    json_object_foreach(lists, key, items)
        if (!strncasecmp(key, query, n) && !key[n]) return key;
    return NULL;
}

/* Why there is no answer; the sentence ends up behind "line 3: LIST: ". */
static const char *missing(const ListAnswerer *l, const char *query, Arena *a) {
    const char *names[LISTS_NEAR], *key;
    int n = 0;
    json_t *items;
    json_object_foreach(l->lists, key, items)
        if (n < LISTS_NEAR) names[n++] = key;
    const char *near = nearest(query, names, n);
    char text[800];
    snprintf(text, sizeof text, "%s has no list \"%.200s\"%s%.200s%s; add it there (no language model can be asked yet)", l->path, query,
             near ? " (did you mean \"" : "", near ? near : "", near ? "\"?)" : "");
    return arena_strdup(a, text, strlen(text));
}

static void answer(Answerer *self, Ctx *c, const Ask *ask, int64_t n, Answer *out, Arena *a) {
    (void)c;
    const ListAnswerer *l = (ListAnswerer *)self;
    for (int64_t i = 0; i < n; i++) {
        const char *key = find(l->lists, ask[i].query);
        if (!key) {
            out[i].why = missing(l, ask[i].query, a);
            continue;
        }
        json_t *items = json_object_get(l->lists, key);
        const int m = (int)json_array_size(items);
        Value *at = ARENA_NEW(a, Value, m);
        for (int k = 0; k < m; k++) {
            json_t *s = json_array_get(items, (size_t)k);
            at[k] = value_str(json_string_value(s), (int)json_string_length(s));
        }
        out[i].value = (Value){.kind = VAL_LIST, .list = {at, m}};
    }
}

bool lists_open(ListAnswerer *l, const char *path, Error *e) {
    *l = (ListAnswerer){.base = {.module = "LIST", .answer = answer}, .path = path};
    char *data;
    size_t size;
    if (!file_read(path, &data, &size, FILE_LIMIT, e)) {
        if (e) e->status = FAIL_CONFIG;
        return false;
    }
    json_error_t je;
    l->lists = json_loadb(data, size, JSON_REJECT_DUPLICATES, &je);
    free(data);
    if (!l->lists) return fail_as(e, FAIL_CONFIG, "%s:%d: %s", path, je.line, je.text);
    const char *key;
    json_t *items, *item;
    size_t k;
    if (!json_is_object(l->lists)) return fail_as(e, FAIL_CONFIG, "%s: not an object {\"garden birds\": [\"robin\", \"wren\"]}", path);
    json_object_foreach(l->lists, key, items) {
        bool strings = json_is_array(items) && json_array_size(items);
        json_array_foreach(items, k, item) strings = strings && json_is_string(item);
        if (!strings) return fail_as(e, FAIL_CONFIG, "%s: \"%.200s\" is not a list of strings (like [\"robin\", \"wren\"])", path, key);
    }
    return true;
}

void lists_close(ListAnswerer *l) {
    json_decref(l->lists);
    *l = (ListAnswerer){0};
}
