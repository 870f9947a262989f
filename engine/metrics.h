/* metrics.h -- what a run writes down: rows of named numbers in a file, and a progress line for people.
 *
 * A file belongs to one run. Rows hold nothing that two equal runs would write differently unless the caller puts
 * it there (times), so logs can be compared byte for byte.
 */
#pragma once
#include "engine/base.h"

typedef struct Metrics Metrics;
typedef struct Metric { const char *key; double value; } Metric;

/* Opens `path` for rows: CSV when it ends in .csv, JSON lines (one object per line) when in .jsonl.
 * from_step < 0: a new file. Otherwise the run goes on and will write the rows of from_step and later itself: these are
 * cut off, and so is a last line that a killed run left half written. NULL with e: FAIL_DATA when the file there
 * is not such a log, FAIL_DISK when it cannot be written, FAIL_USAGE for another suffix. */
Metrics *metrics_open(const char *path, int64_t from_step, Error *e);

/* Appends {"step": step, key: value, ...} as one write. Keys are our own plain words. A value that is no number
 * (NaN, infinite) becomes null, in CSV an empty field. The columns of a CSV file are the keys of its first row: a later
 * row may lack some and its other keys are an error (.jsonl takes any row). FAIL_DISK when the disk is full. */
bool metrics_row(Metrics *m, int64_t step, const Metric *row, int n, Error *e);
#define METRICS_ROW(m, step, e, ...)                                                                         \
    metrics_row((m), (step), (const Metric[]){__VA_ARGS__}, COUNT_OF(((const Metric[]){__VA_ARGS__})), (e))

/* fsyncs (a row is in the page cache at once, so a killed process loses none). NULL is fine. */
void metrics_close(Metrics *m);

/* The progress of one long loop, on stderr: on a terminal a line that is drawn anew at most ten times a second, otherwise a
 * plain line every 10 seconds. One thread. Rate and time left come from the last half minute or so. */
typedef struct Progress {
    FILE *out;
    bool terminal, drawn;
    const char *what;
    int64_t total;      /* 0: unknown, no bar and no time left */
    int64_t every;      /* plain lines: also every so many steps when > 0; the caller may set it after progress_begin */
    double start, shown; /* seconds: when begun, when last drawn */
    int64_t shown_at;
    struct { double at; int64_t done; } past[16]; /* ring of samples, two seconds apart */
    int npast;
} Progress;

void progress_begin(Progress *p, const char *what, int64_t total);
/* `done` of `total` are done; the text (may be "") says how it goes, such as the loss. Cheap when it draws nothing. */
void progress_step(Progress *p, int64_t done, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Takes the line away, so that something else can be printed; the next step draws it again. */
void progress_hide(Progress *p);
/* The last line: what, how many, how long, the text. */
void progress_end(Progress *p, int64_t done, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
