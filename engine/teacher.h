/* teacher.h -- the frozen end-to-end network, asked the sub-questions of a program.
 *
 * The teacher only answers questions about (parts of) images. A VQA step is put to it as it is: the same
 * rectangle, the same question. A LOC step is verified: candidate boxes are cropped, the teacher says what each is,
 * and of those that may be the phrase's noun whether the object is there and what the phrase says: its colour,
 * its pattern. Its answers are mapped into the student's label space (the adapter). Which labels are kept, and
 * what is learnt from them, is distill.c's.
 */
#pragma once
#include "modules/answer.h"

enum { MAX_CANDIDATES = 32 };

/* A box that the student proposes for a LOC question, and what the teacher thinks of it. Several may lie on one object:
 * the best verified leads, the others follow it. */
typedef struct Candidate {
    Rect box;       /* pixels of the crop, as LOC gives it */
    float yes;      /* the teacher's probability that the object is there */
    int leader;     /* index of the candidate whose box is this object's; its own when it leads */
} Candidate;

/* What the teacher says of one distinct question. */
typedef struct Label {
    bool is_loc;
    Value student, teacher;  /* as values of the program */
    float confidence;        /* VQA: the largest probability; LOC: the least sure leader's max(p, 1-p) */
    float *p;                /* VQA: (V) over the STUDENT's answers; what the adapter could not map has gone */
    int nleaders, ncandidates;
    Candidate *candidate;    /* LOC: the leaders, best `yes` first, then the followers */
} Label;

/* What a program of the batch will look for on an image: the phrase's noun as an answer of the teacher,
 * and whether the phrase has no other word. */
typedef struct Noun {
    uint64_t image_id;
    int32_t label, alone;
} Noun;

/* A noun that no program asks of this image, verified all the same on the proposals that are there anyway. */
typedef struct OtherAsk {
    Ask ask;
    Label *label;
    bool twice; /* another rank or part teaches it, too, and counts (step.c) */
    struct OtherAsk *next;
} OtherAsk;

typedef struct Teacher {
    Module *vqa;
    int *to_student;      /* teacher label -> student label, -1: the student has no such answer */
    int yes, no;          /* the teacher's own labels */
    int max_batch;
    int max_candidates;
    float floor;          /* student score below which a box is no candidate */
    float grow;           /* candidates are enlarged by this before they are shown */
    bool attributes;      /* verify word by word as well */
    int others;           /* LOC: further nouns put to each rectangle's proposals ... */
    const Noun *noun; /* ... of these, the whole batch's in its order, whoever runs the programs; borrowed */
    int64_t nnouns;
    OtherAsk *other;      /* of the update, newest first */
    int64_t asked;        /* questions put to it so far, equal ones of a call once */
    TowerCache seen;
} Teacher;

/* Opens the folder frozen and maps its answers to those of `student_vqa`. Fails when it is no VQA model, or LOC steps are to
 * be verified (`verify`) and it cannot say yes and no. */
bool teacher_open(Teacher *t, const char *folder, const Module *student_vqa, bool verify, Device *dev, DType type,
                  Error *e);
void teacher_close(Teacher *t);

/* A new update: what belonged to the last one is forgotten. */
void teacher_begin(Teacher *t);
/* The noun of a phrase, its last word; false when the teacher has no such answer. */
bool teacher_noun(const Teacher *t, const char *phrase, Noun *out); /* all but the image */
/* Asks the teacher n questions (tape off, in batches, giving the step arena back): writes its probabilities (n, V_teacher)
 * to p, host memory. */
void teacher_ask(Teacher *t, Ctx *c, const Ask *ask, int64_t n, float *p);

/* An answerer that puts each question to the student (tape as the context has it) and to the teacher. The value that
 * steers the program on is the teacher's or the student's; the label holds both. */
typedef struct GuidedAnswerer {
    Answerer base;
    ModuleAnswerer *student;
    Module *start;           /* LOC: the student before it learnt, frozen, whose boxes are the proposals */
    Teacher *teacher;
    bool steer_teacher;
} GuidedAnswerer;
void guided_answerer(GuidedAnswerer *g, ModuleAnswerer *student, Module *start, Teacher *teacher, bool steer_teacher);

/* "Is there a red ball?", "Is there an arrow?" into out. */
void verify_question(char *out, size_t size, const char *object);
/* The verified boxes of a LOC label as the program sees them: the first n leaders (n < 0: those with yes > 0.5). */
Value verified_boxes(const Label *l, int n, Rect of, Arena *a);
float rect_iou(Rect a, Rect b);
