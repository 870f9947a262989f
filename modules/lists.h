/* lists.h -- who answers LIST: a file of lists.
 *
 * VisProg asks a language model for "garden birds". That needs an endpoint, which is not here yet; what is here is a JSON file
 * that says it, {"garden birds": ["robin", "wren"], ...}, and answers as the endpoint will.
 */
#pragma once
#include "engine/sched.h"

typedef struct ListAnswerer {
    Answerer base;
    json_t *lists;
    const char *path;
} ListAnswerer;

/* False (FAIL_CONFIG) when the file is not such an object; the place and the remedy are in e. The path is borrowed. */
bool lists_open(ListAnswerer *l, const char *path, Error *e);
void lists_close(ListAnswerer *l);
