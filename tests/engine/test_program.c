/* test_program.c -- the parser, the checker and the execution of visual programs.
 *
 * The examples, their parses and results are those of the specification (made there by running the reference's own parser
 * and EVAL); the table of quotes is what the reference does with each line, beside what a person would read.
 */
#include "engine/program.h"
#include "modules/steps.h"
#include "tests/test.h"

static Arena arena;

/* Room for one program and its run; what was there before is gone. */
static Arena *fresh(void) {
    if (!arena.size) arena_open(&arena, "test programs", NULL, 64 << 20);
    arena_reset(&arena, 0);
    return &arena;
}

static bool parse(Program *p, const Dialect *d, const char *text, Error *e) {
    *e = (Error){0};
    return program_parse(p, fresh(), d, text, strlen(text), e);
}

/* The parse as lines "VAR STEP|arg=value|...", strings between the quotes that need no escape. */
static void render(char *out, size_t size, const Program *p) {
    size_t at = 0;
    for (int i = 0; i < p->nsteps; i++) {
        const Step *s = &p->steps[i];
        at += (size_t)snprintf(out + at, size - at, "%s %s", p->names[s->out], s->kind->name);
        for (int k = 0; k < s->kind->nargs; k++) {
            if (s->arg[k] == ARG_NONE) continue;
            at += (size_t)snprintf(out + at, size - at, "|%s=", s->kind->arg[k].name);
            if (s->arg[k] >= 0) {
                at += (size_t)snprintf(out + at, size - at, "%s", p->names[s->arg[k]]);
                continue;
            }
            const Value *v = &p->consts[~s->arg[k]];
            char text[4096], mark = 0;
            value_text(text, sizeof text, v);
            if (v->kind == VAL_STR) mark = strchr(text, '\'') ? '"' : '\'';
            if (mark) at += (size_t)snprintf(out + at, size - at, "%c%s%c", mark, text, mark);
            else at += (size_t)snprintf(out + at, size - at, "%s", text);
        }
        at += (size_t)snprintf(out + at, size - at, "\n");
    }
}

/* Answers a module's step from "VAR=answer|VAR=2 box(es)". */
static void answer(Value *out, const char *mock, const char *var, Arena *a) {
    size_t n = strlen(var);
    for (const char *m = mock; m; m = strchr(m, '|') ? strchr(m, '|') + 1 : NULL) {
        if (strncmp(m, var, n) || m[n] != '=') continue;
        const char *text = m + n + 1;
        int len = (int)strcspn(text, "|");
        if (!memmem(text, (size_t)len, "box(es)", 7)) {
            *out = value_str(text, len);
            return;
        }
        int k = atoi(text);
        Boxes *b = boxes_new(a, k, (Rect){0, 0, 640, 427});
        for (int i = 0; i < k; i++) b->box[i] = (Box){{10 + i, 20, 110 + i, 90}, 0.9f - 0.1f * (float)i, i};
        *out = value_boxes(b);
        return;
    }
    EXPECT(false, "no mock for %s in %s", var, mock);
}

/* Runs a program with mocked modules; the result as Python would print it ('yes', True, 3). */
static bool run(char *out, size_t size, const Program *p, const char *mock, Error *e) {
    Value *vars = ARENA_NEW(&arena, Value, p->nslots);
    for (int i = 0; i < p->ninputs; i++) vars[i] = value_image((uint64_t)i, 640, 427);
    for (int i = 0; (i = program_advance(p, i, vars, &arena, e)) != p->nsteps; i++) {
        if (i < 0) return false;
        answer(&vars[p->steps[i].out], mock, p->names[p->steps[i].out], &arena);
    }
    const Value *r = program_result(p, vars);
    char text[1024];
    if (value_text(text, sizeof text, r) < 0) snprintf(text, sizeof text, "<%s>", value_kind_name(r->kind));
    snprintf(out, size, r->kind == VAL_STR ? "'%s'" : "%s", text);
    return true;
}

typedef struct Example { const char *id, *text, *parse, *mock, *result; } Example;

/* Specification, section 9. Not executed: X01, X02 (editing and tagging). */
static const Example examples[] = {
    {"E01",
     "BOX0=LOC(image=IMAGE,object='kettle')\n"
     "ANSWER0=COUNT(box=BOX0)\n"
     "ANSWER1=EVAL(expr=\"'yes' if {ANSWER0} > 0 else 'no'\")\n"
     "FINAL_RESULT=RESULT(var=ANSWER1)\n",
     "BOX0 LOC|image=IMAGE|object='kettle'\n"
     "ANSWER0 COUNT|box=BOX0\n"
     "ANSWER1 EVAL|expr=\"'yes' if {ANSWER0} > 0 else 'no'\"\n"
     "FINAL_RESULT RESULT|var=ANSWER1\n",
     "BOX0=1 box(es)", "'yes'"},
    {"E02",
     "BOX0=LOC(image=IMAGE,object='canoe')\n"
     "BOX1=LOC(image=IMAGE,object='paddle')\n"
     "ANSWER0=COUNT(box=BOX0)\n"
     "ANSWER1=COUNT(box=BOX1)\n"
     "ANSWER2=EVAL(expr=\"'yes' if {ANSWER0} + {ANSWER1} > 0 else 'no'\")\n"
     "FINAL_RESULT=RESULT(var=ANSWER2)\n",
     "BOX0 LOC|image=IMAGE|object='canoe'\n"
     "BOX1 LOC|image=IMAGE|object='paddle'\n"
     "ANSWER0 COUNT|box=BOX0\n"
     "ANSWER1 COUNT|box=BOX1\n"
     "ANSWER2 EVAL|expr=\"'yes' if {ANSWER0} + {ANSWER1} > 0 else 'no'\"\n"
     "FINAL_RESULT RESULT|var=ANSWER2\n",
     "BOX0=0 box(es)|BOX1=2 box(es)", "'yes'"},
    {"E03",
     "BOX0=LOC(image=IMAGE,object='violin')\n"
     "BOX1=LOC(image=IMAGE,object='music stand')\n"
     "ANSWER0=COUNT(box=BOX0)\n"
     "ANSWER1=COUNT(box=BOX1)\n"
     "ANSWER2=EVAL(expr=\"'yes' if {ANSWER0} > 0 and {ANSWER1} > 0 else 'no'\")\n"
     "FINAL_RESULT=RESULT(var=ANSWER2)\n",
     "BOX0 LOC|image=IMAGE|object='violin'\n"
     "BOX1 LOC|image=IMAGE|object='music stand'\n"
     "ANSWER0 COUNT|box=BOX0\n"
     "ANSWER1 COUNT|box=BOX1\n"
     "ANSWER2 EVAL|expr=\"'yes' if {ANSWER0} > 0 and {ANSWER1} > 0 else 'no'\"\n"
     "FINAL_RESULT RESULT|var=ANSWER2\n",
     "BOX0=1 box(es)|BOX1=0 box(es)", "'no'"},
    {"E04",
     "BOX0=LOC(image=IMAGE,object='mailbox')\n"
     "IMAGE0=CROP(image=IMAGE,box=BOX0)\n"
     "ANSWER0=VQA(image=IMAGE0,question='What color is the mailbox?')\n"
     "FINAL_RESULT=RESULT(var=ANSWER0)\n",
     "BOX0 LOC|image=IMAGE|object='mailbox'\n"
     "IMAGE0 CROP|image=IMAGE|box=BOX0\n"
     "ANSWER0 VQA|image=IMAGE0|question='What color is the mailbox?'\n"
     "FINAL_RESULT RESULT|var=ANSWER0\n",
     "BOX0=1 box(es)|ANSWER0=red", "'red'"},
    {"E05",
     "BOX0=LOC(image=IMAGE,object='aquarium')\n"
     "IMAGE0=CROP_LEFTOF(image=IMAGE,box=BOX0)\n"
     "ANSWER0=VQA(image=IMAGE0,question='What kind of furniture is this?')\n"
     "FINAL_RESULT=RESULT(var=ANSWER0)\n",
     "BOX0 LOC|image=IMAGE|object='aquarium'\n"
     "IMAGE0 CROP_LEFTOF|image=IMAGE|box=BOX0\n"
     "ANSWER0 VQA|image=IMAGE0|question='What kind of furniture is this?'\n"
     "FINAL_RESULT RESULT|var=ANSWER0\n",
     "BOX0=1 box(es)|ANSWER0=bookcase", "'bookcase'"},
    {"E06",
     "BOX0=LOC(image=IMAGE,object='fountain')\n"
     "IMAGE0=CROP_RIGHTOF(image=IMAGE,box=BOX0)\n"
     "BOX1=LOC(image=IMAGE0,object='scooter')\n"
     "ANSWER0=COUNT(box=BOX1)\n"
     "ANSWER1=EVAL(expr=\"'yes' if {ANSWER0} > 0 else 'no'\")\n"
     "FINAL_RESULT=RESULT(var=ANSWER1)\n",
     "BOX0 LOC|image=IMAGE|object='fountain'\n"
     "IMAGE0 CROP_RIGHTOF|image=IMAGE|box=BOX0\n"
     "BOX1 LOC|image=IMAGE0|object='scooter'\n"
     "ANSWER0 COUNT|box=BOX1\n"
     "ANSWER1 EVAL|expr=\"'yes' if {ANSWER0} > 0 else 'no'\"\n"
     "FINAL_RESULT RESULT|var=ANSWER1\n",
     "BOX0=2 box(es)|BOX1=0 box(es)", "'no'"},
    {"E07",
     "BOX0=LOC(image=IMAGE,object='fireplace')\n"
     "IMAGE0=CROP_ABOVE(image=IMAGE,box=BOX0)\n"
     "BOX1=LOC(image=IMAGE0,object='clock')\n"
     "ANSWER0=COUNT(box=BOX1)\n"
     "ANSWER1=EVAL(expr=\"'yes' if {ANSWER0} > 0 else 'no'\")\n"
     "FINAL_RESULT=RESULT(var=ANSWER1)\n",
     "BOX0 LOC|image=IMAGE|object='fireplace'\n"
     "IMAGE0 CROP_ABOVE|image=IMAGE|box=BOX0\n"
     "BOX1 LOC|image=IMAGE0|object='clock'\n"
     "ANSWER0 COUNT|box=BOX1\n"
     "ANSWER1 EVAL|expr=\"'yes' if {ANSWER0} > 0 else 'no'\"\n"
     "FINAL_RESULT RESULT|var=ANSWER1\n",
     "BOX0=1 box(es)|BOX1=1 box(es)", "'yes'"},
    {"E08",
     "BOX0=LOC(image=IMAGE,object='hammock')\n"
     "IMAGE0=CROP_BELOW(image=IMAGE,box=BOX0)\n"
     "ANSWER0=VQA(image=IMAGE0,question='What is lying on the ground?')\n"
     "FINAL_RESULT=RESULT(var=ANSWER0)\n",
     "BOX0 LOC|image=IMAGE|object='hammock'\n"
     "IMAGE0 CROP_BELOW|image=IMAGE|box=BOX0\n"
     "ANSWER0 VQA|image=IMAGE0|question='What is lying on the ground?'\n"
     "FINAL_RESULT RESULT|var=ANSWER0\n",
     "BOX0=1 box(es)|ANSWER0=dog", "'dog'"},
    {"E09",
     "BOX0=LOC(image=IMAGE,object='barn')\n"
     "IMAGE0=CROP_BEHIND(image=IMAGE,box=BOX0)\n"
     "BOX1=LOC(image=IMAGE0,object='tractor')\n"
     "ANSWER0=COUNT(box=BOX1)\n"
     "ANSWER1=EVAL(expr=\"'yes' if {ANSWER0} > 0 else 'no'\")\n"
     "FINAL_RESULT=RESULT(var=ANSWER1)\n",
     "BOX0 LOC|image=IMAGE|object='barn'\n"
     "IMAGE0 CROP_BEHIND|image=IMAGE|box=BOX0\n"
     "BOX1 LOC|image=IMAGE0|object='tractor'\n"
     "ANSWER0 COUNT|box=BOX1\n"
     "ANSWER1 EVAL|expr=\"'yes' if {ANSWER0} > 0 else 'no'\"\n"
     "FINAL_RESULT RESULT|var=ANSWER1\n",
     "BOX0=1 box(es)|BOX1=1 box(es)", "'yes'"},
    {"E10",
     "BOX0=LOC(image=IMAGE,object='piano')\n"
     "IMAGE0=CROP_INFRONTOF(image=IMAGE,box=BOX0)\n"
     "ANSWER0=VQA(image=IMAGE0,question='Who is sitting in front of the piano?')\n"
     "FINAL_RESULT=RESULT(var=ANSWER0)\n",
     "BOX0 LOC|image=IMAGE|object='piano'\n"
     "IMAGE0 CROP_INFRONTOF|image=IMAGE|box=BOX0\n"
     "ANSWER0 VQA|image=IMAGE0|question='Who is sitting in front of the piano?'\n"
     "FINAL_RESULT RESULT|var=ANSWER0\n",
     "BOX0=1 box(es)|ANSWER0=woman", "'woman'"},
    {"E11",
     "BOX0=LOC(image=IMAGE,object='LEFT')\n"
     "IMAGE0=CROP(image=IMAGE,box=BOX0)\n"
     "BOX1=LOC(image=IMAGE0,object='ladder')\n"
     "ANSWER0=COUNT(box=BOX1)\n"
     "ANSWER1=EVAL(expr=\"'left' if {ANSWER0} > 0 else 'right'\")\n"
     "FINAL_RESULT=RESULT(var=ANSWER1)\n",
     "BOX0 LOC|image=IMAGE|object='LEFT'\n"
     "IMAGE0 CROP|image=IMAGE|box=BOX0\n"
     "BOX1 LOC|image=IMAGE0|object='ladder'\n"
     "ANSWER0 COUNT|box=BOX1\n"
     "ANSWER1 EVAL|expr=\"'left' if {ANSWER0} > 0 else 'right'\"\n"
     "FINAL_RESULT RESULT|var=ANSWER1\n",
     "BOX0=1 box(es)|BOX1=0 box(es)", "'right'"},
    {"E12",
     "BOX0=LOC(image=IMAGE,object='BOTTOM')\n"
     "IMAGE0=CROP(image=IMAGE,box=BOX0)\n"
     "BOX1=LOC(image=IMAGE0,object='animal')\n"
     "IMAGE1=CROP(image=IMAGE0,box=BOX1)\n"
     "ANSWER0=VQA(image=IMAGE1,question='What animal is this?')\n"
     "FINAL_RESULT=RESULT(var=ANSWER0)\n",
     "BOX0 LOC|image=IMAGE|object='BOTTOM'\n"
     "IMAGE0 CROP|image=IMAGE|box=BOX0\n"
     "BOX1 LOC|image=IMAGE0|object='animal'\n"
     "IMAGE1 CROP|image=IMAGE0|box=BOX1\n"
     "ANSWER0 VQA|image=IMAGE1|question='What animal is this?'\n"
     "FINAL_RESULT RESULT|var=ANSWER0\n",
     "BOX0=1 box(es)|BOX1=3 box(es)|ANSWER0=goat", "'goat'"},
    {"E13",
     "BOX0=LOC(image=IMAGE,object='umbrella')\n"
     "IMAGE0=CROP(image=IMAGE,box=BOX0)\n"
     "ANSWER0=VQA(image=IMAGE0,question='Is the umbrella open?')\n"
     "ANSWER1=EVAL(expr=\"'open' if {ANSWER0} else 'closed'\")\n"
     "FINAL_RESULT=RESULT(var=ANSWER1)\n",
     "BOX0 LOC|image=IMAGE|object='umbrella'\n"
     "IMAGE0 CROP|image=IMAGE|box=BOX0\n"
     "ANSWER0 VQA|image=IMAGE0|question='Is the umbrella open?'\n"
     "ANSWER1 EVAL|expr=\"'open' if {ANSWER0} else 'closed'\"\n"
     "FINAL_RESULT RESULT|var=ANSWER1\n",
     "BOX0=1 box(es)|ANSWER0=no", "'closed'"},
    {"E14",
     "BOX0=LOC(image=IMAGE,object='helmet')\n"
     "IMAGE0=CROP(image=IMAGE,box=BOX0)\n"
     "ANSWER0=VQA(image=IMAGE0,question='What color is the helmet?')\n"
     "ANSWER1=EVAL(expr=\"'yes' if {ANSWER0} == 'yellow' else 'no'\")\n"
     "FINAL_RESULT=RESULT(var=ANSWER1)\n",
     "BOX0 LOC|image=IMAGE|object='helmet'\n"
     "IMAGE0 CROP|image=IMAGE|box=BOX0\n"
     "ANSWER0 VQA|image=IMAGE0|question='What color is the helmet?'\n"
     "ANSWER1 EVAL|expr=\"'yes' if {ANSWER0} == 'yellow' else 'no'\"\n"
     "FINAL_RESULT RESULT|var=ANSWER1\n",
     "BOX0=1 box(es)|ANSWER0=yellow", "'yes'"},
    {"E15",
     "BOX0=LOC(image=IMAGE,object='curtain')\n"
     "IMAGE0=CROP(image=IMAGE,box=BOX0)\n"
     "BOX1=LOC(image=IMAGE,object='rug')\n"
     "IMAGE1=CROP(image=IMAGE,box=BOX1)\n"
     "ANSWER0=VQA(image=IMAGE0,question='What color is the curtain?')\n"
     "ANSWER1=VQA(image=IMAGE1,question='What color is the rug?')\n"
     "ANSWER2=EVAL(expr=\"'yes' if {ANSWER0} == {ANSWER1} else 'no'\")\n"
     "FINAL_RESULT=RESULT(var=ANSWER2)\n",
     "BOX0 LOC|image=IMAGE|object='curtain'\n"
     "IMAGE0 CROP|image=IMAGE|box=BOX0\n"
     "BOX1 LOC|image=IMAGE|object='rug'\n"
     "IMAGE1 CROP|image=IMAGE|box=BOX1\n"
     "ANSWER0 VQA|image=IMAGE0|question='What color is the curtain?'\n"
     "ANSWER1 VQA|image=IMAGE1|question='What color is the rug?'\n"
     "ANSWER2 EVAL|expr=\"'yes' if {ANSWER0} == {ANSWER1} else 'no'\"\n"
     "FINAL_RESULT RESULT|var=ANSWER2\n",
     "BOX0=1 box(es)|BOX1=1 box(es)|ANSWER0=blue|ANSWER1=blue", "'yes'"},
    {"E16",
     "BOX0=LOC(image=IMAGE,object='bench')\n"
     "IMAGE0=CROP(image=IMAGE,box=BOX0)\n"
     "BOX1=LOC(image=IMAGE,object='table')\n"
     "IMAGE1=CROP(image=IMAGE,box=BOX1)\n"
     "ANSWER0=VQA(image=IMAGE0,question='What is the bench made of?')\n"
     "ANSWER1=VQA(image=IMAGE1,question='What is the table made of?')\n"
     "ANSWER2=EVAL(expr=\"'yes' if {ANSWER0} != {ANSWER1} else 'no'\")\n"
     "FINAL_RESULT=RESULT(var=ANSWER2)\n",
     "BOX0 LOC|image=IMAGE|object='bench'\n"
     "IMAGE0 CROP|image=IMAGE|box=BOX0\n"
     "BOX1 LOC|image=IMAGE|object='table'\n"
     "IMAGE1 CROP|image=IMAGE|box=BOX1\n"
     "ANSWER0 VQA|image=IMAGE0|question='What is the bench made of?'\n"
     "ANSWER1 VQA|image=IMAGE1|question='What is the table made of?'\n"
     "ANSWER2 EVAL|expr=\"'yes' if {ANSWER0} != {ANSWER1} else 'no'\"\n"
     "FINAL_RESULT RESULT|var=ANSWER2\n",
     "BOX0=1 box(es)|BOX1=1 box(es)|ANSWER0=wood|ANSWER1=metal", "'yes'"},
    {"E17",
     "ANSWER0=VQA(image=IMAGE,question='Are all the boats of the same type?')\n"
     "FINAL_RESULT=RESULT(var=ANSWER0)\n",
     "ANSWER0 VQA|image=IMAGE|question='Are all the boats of the same type?'\n"
     "FINAL_RESULT RESULT|var=ANSWER0\n",
     "ANSWER0=yes", "'yes'"},
    {"E18",
     "ANSWER0=VQA(image=IMAGE,question='What do the plate and the napkin have in common?')\n"
     "FINAL_RESULT=RESULT(var=ANSWER0)\n",
     "ANSWER0 VQA|image=IMAGE|question='What do the plate and the napkin have in common?'\n"
     "FINAL_RESULT RESULT|var=ANSWER0\n",
     "ANSWER0=color", "'color'"},
    {"E19",
     "BOX0=LOC(image=IMAGE,object='duck')\n"
     "BOX1=LOC(image=IMAGE,object='swan')\n"
     "ANSWER0=COUNT(box=BOX0)\n"
     "ANSWER1=COUNT(box=BOX1)\n"
     "ANSWER2=EVAL(expr=\"'yes' if {ANSWER0} > {ANSWER1} else 'no'\")\n"
     "FINAL_RESULT=RESULT(var=ANSWER2)\n",
     "BOX0 LOC|image=IMAGE|object='duck'\n"
     "BOX1 LOC|image=IMAGE|object='swan'\n"
     "ANSWER0 COUNT|box=BOX0\n"
     "ANSWER1 COUNT|box=BOX1\n"
     "ANSWER2 EVAL|expr=\"'yes' if {ANSWER0} > {ANSWER1} else 'no'\"\n"
     "FINAL_RESULT RESULT|var=ANSWER2\n",
     "BOX0=4 box(es)|BOX1=4 box(es)", "'no'"},
    {"E20",
     "ANSWER0=VQA(image=LEFT,question='How many hot-air balloons are in the image?')\n"
     "ANSWER1=EVAL(expr='{ANSWER0} >= 3')\n"
     "FINAL_ANSWER=RESULT(var=ANSWER1)\n",
     "ANSWER0 VQA|image=LEFT|question='How many hot-air balloons are in the image?'\n"
     "ANSWER1 EVAL|expr='{ANSWER0} >= 3'\n"
     "FINAL_ANSWER RESULT|var=ANSWER1\n",
     "ANSWER0=4", "True"},
    {"E21",
     "ANSWER0=VQA(image=LEFT,question='How many lemons are in the image?')\n"
     "ANSWER1=VQA(image=RIGHT,question='How many lemons are in the image?')\n"
     "ANSWER2=EVAL(expr='{ANSWER0} + {ANSWER1} == 5')\n"
     "FINAL_ANSWER=RESULT(var=ANSWER2)\n",
     "ANSWER0 VQA|image=LEFT|question='How many lemons are in the image?'\n"
     "ANSWER1 VQA|image=RIGHT|question='How many lemons are in the image?'\n"
     "ANSWER2 EVAL|expr='{ANSWER0} + {ANSWER1} == 5'\n"
     "FINAL_ANSWER RESULT|var=ANSWER2\n",
     "ANSWER0=2|ANSWER1=2", "False"},
    {"E22",
     "ANSWER0=VQA(image=LEFT,question='How many lighthouses are in the image?')\n"
     "ANSWER1=VQA(image=RIGHT,question='How many lighthouses are in the image?')\n"
     "ANSWER2=VQA(image=LEFT,question='Is the lighthouse striped?')\n"
     "ANSWER3=VQA(image=RIGHT,question='Is the lighthouse striped?')\n"
     "ANSWER4=EVAL(expr='{ANSWER0} == 1 and {ANSWER2}')\n"
     "ANSWER5=EVAL(expr='{ANSWER1} == 1 and {ANSWER3}')\n"
     "ANSWER6=EVAL(expr='{ANSWER4} xor {ANSWER5}')\n"
     "FINAL_ANSWER=RESULT(var=ANSWER6)\n",
     "ANSWER0 VQA|image=LEFT|question='How many lighthouses are in the image?'\n"
     "ANSWER1 VQA|image=RIGHT|question='How many lighthouses are in the image?'\n"
     "ANSWER2 VQA|image=LEFT|question='Is the lighthouse striped?'\n"
     "ANSWER3 VQA|image=RIGHT|question='Is the lighthouse striped?'\n"
     "ANSWER4 EVAL|expr='{ANSWER0} == 1 and {ANSWER2}'\n"
     "ANSWER5 EVAL|expr='{ANSWER1} == 1 and {ANSWER3}'\n"
     "ANSWER6 EVAL|expr='{ANSWER4} xor {ANSWER5}'\n"
     "FINAL_ANSWER RESULT|var=ANSWER6\n",
     "ANSWER0=1|ANSWER1=1|ANSWER2=yes|ANSWER3=no", "True"},
    {"E23",
     "ANSWER0=VQA(image=LEFT,question='Is there an open suitcase in the image?')\n"
     "ANSWER1=VQA(image=RIGHT,question='Is there an open suitcase in the image?')\n"
     "ANSWER2=EVAL(expr='not {ANSWER0} and not {ANSWER1}')\n"
     "FINAL_ANSWER=RESULT(var=ANSWER2)\n",
     "ANSWER0 VQA|image=LEFT|question='Is there an open suitcase in the image?'\n"
     "ANSWER1 VQA|image=RIGHT|question='Is there an open suitcase in the image?'\n"
     "ANSWER2 EVAL|expr='not {ANSWER0} and not {ANSWER1}'\n"
     "FINAL_ANSWER RESULT|var=ANSWER2\n",
     "ANSWER0=no|ANSWER1=no", "True"},
    {"E24",
     "ANSWER0=VQA(image=LEFT,question='How many parrots are in the image?')\n"
     "ANSWER1=VQA(image=RIGHT,question='How many parrots are in the image?')\n"
     "ANSWER2=EVAL(expr='{ANSWER1} == 2 * {ANSWER0}')\n"
     "FINAL_ANSWER=RESULT(var=ANSWER2)\n",
     "ANSWER0 VQA|image=LEFT|question='How many parrots are in the image?'\n"
     "ANSWER1 VQA|image=RIGHT|question='How many parrots are in the image?'\n"
     "ANSWER2 EVAL|expr='{ANSWER1} == 2 * {ANSWER0}'\n"
     "FINAL_ANSWER RESULT|var=ANSWER2\n",
     "ANSWER0=1|ANSWER1=2", "True"},
    {"E25",
     "ANSWER0=VQA(image=LEFT,question=\"Is the chef's hat visible?\")\n"
     "ANSWER1=VQA(image=RIGHT,question=\"Is the chef's hat visible?\")\n"
     "ANSWER2=EVAL(expr='{ANSWER0} or {ANSWER1}')\n"
     "FINAL_ANSWER=RESULT(var=ANSWER2)\n",
     "ANSWER0 VQA|image=LEFT|question=\"Is the chef's hat visible?\"\n"
     "ANSWER1 VQA|image=RIGHT|question=\"Is the chef's hat visible?\"\n"
     "ANSWER2 EVAL|expr='{ANSWER0} or {ANSWER1}'\n"
     "FINAL_ANSWER RESULT|var=ANSWER2\n",
     "ANSWER0=no|ANSWER1=yes", "True"},
    {"X01",
     "OBJ0=SEG(image=IMAGE)\n"
     "OBJ1=SELECT(image=IMAGE,object=OBJ0,query='surfboard,wave',category=None)\n"
     "IMAGE0=COLORPOP(image=IMAGE,object=OBJ1)\n"
     "FINAL_RESULT=RESULT(var=IMAGE0)\n",
     "OBJ0 SEG|image=IMAGE\n"
     "OBJ1 SELECT|image=IMAGE|object=OBJ0|query='surfboard,wave'|category=None\n"
     "IMAGE0 COLORPOP|image=IMAGE|object=OBJ1\n"
     "FINAL_RESULT RESULT|var=IMAGE0\n",
     "", ""},
    {"X02",
     "OBJ0=LOC(image=IMAGE,object='bird')\n"
     "LIST0=LIST(query='garden birds',max=6)\n"
     "OBJ1=CLASSIFY(image=IMAGE,object=OBJ0,categories=LIST0)\n"
     "IMAGE0=TAG(image=IMAGE,object=OBJ1)\n"
     "FINAL_RESULT=RESULT(var=IMAGE0)\n",
     "OBJ0 LOC|image=IMAGE|object='bird'\n"
     "LIST0 LIST|query='garden birds'|max=6\n"
     "OBJ1 CLASSIFY|image=IMAGE|object=OBJ0|categories=LIST0\n"
     "IMAGE0 TAG|image=IMAGE|object=OBJ1\n"
     "FINAL_RESULT RESULT|var=IMAGE0\n",
     "", ""},
};

TEST(program_examples) {
    for (int i = 0; i < COUNT_OF(examples); i++)
        for (int strict = 0; strict < 2; strict++) {
            const Example *x = &examples[i];
            Dialect d = strstr(x->text, "LEFT,question") ? dialect_nlvr : dialect_gqa;
            d.strict = strict;
            Program p;
            Error e;
            char text[4096];
            bool ok = parse(&p, &d, x->text, &e);
            EXPECT(ok, "%s: %s", x->id, e.text);
            if (!ok) continue;
            render(text, sizeof text, &p);
            EXPECT(!strcmp(text, x->parse), "%s: parsed as\n%s", x->id, text);
            if (!*x->result) continue;
            ok = run(text, sizeof text, &p, x->mock, &e);
            EXPECT(ok, "%s: %s", x->id, e.text);
            EXPECT(ok && !strcmp(text, x->result), "%s: result %s, want %s", x->id, text, x->result);
        }
}

/* Section 2: lines and what a person reads. `want` starting with '!': refused, with this in the sentence. */
static const struct { const char *line, *want;
} lines[] = {
    {"A=VQA(image=LEFT,question=\"Is the dog's tail up?\")",
     "A VQA|image=LEFT|question=\"Is the dog's tail up?\""},
    {"A=VQA(image=LEFT,question='Is the dog\\'s tail up?')",
     "A VQA|image=LEFT|question=\"Is the dog's tail up?\""},
    {"A=VQA(image=LEFT,question='Is the dog's tail up?')",
     "A VQA|image=LEFT|question=\"Is the dog's tail up?\""},
    {"A=VQA(image=LEFT,question='Does it have Disney's Frozen on it?')",
     "A VQA|image=LEFT|question=\"Does it have Disney's Frozen on it?\""},
    {"A=VQA(image=LEFT,question='the dogs' tails, and the cat's, are they up?')",
     "A VQA|image=LEFT|question=\"the dogs' tails, and the cat's, are they up?\""},
    {"A=VQA(question='Is the dog's tail up?', image=LEFT)",
     "A VQA|image=LEFT|question=\"Is the dog's tail up?\""},
    {"A=VQA(image=LEFT,question='What is it, and is it red = true?')",
     "A VQA|image=LEFT|question='What is it, and is it red = true?'"},
    {"A=VQA(image=LEFT,question='(how many?)')", "A VQA|image=LEFT|question='(how many?)'"},
    {"A=VQA(image=LEFT,question='(how many?')", "A VQA|image=LEFT|question='(how many?'"},
    {"A=VQA(image=LEFT,question='x',)", "A VQA|image=LEFT|question='x'"},
    {"A=VQA(image=LEFT,question='')", "A VQA|image=LEFT|question=''"},
    {"A=VQA(image=LEFT,question='''Is it red?''')", "A VQA|image=LEFT|question='Is it red?'"},
    {"A=VQA(image=LEFT,question=\xe2\x80\x99x\xe2\x80\x99)", "A VQA|image=LEFT|question='x'"},
    {"A=VQA(image=LEFT,question=\xe2\x80\x9cis it x?\xe2\x80\x9d)", "A VQA|image=LEFT|question='is it x?'"},
    {"A=VQA(image=LEFT,question=\xe2\x80\x98the dog\xe2\x80\x99s tail\xe2\x80\x99) # note",
     "A VQA|image=LEFT|question='the dog\xe2\x80\x99s tail'"},
    {"A=VQA(Image=RIGHT, Question='x')", "A VQA|image=RIGHT|question='x'"},
    {"A = VQA( image = LEFT , question = \"lamp\" )", "A VQA|image=LEFT|question='lamp'"},
    {" \tA=LOC(image=LEFT,object='caf\xc3\xa9')  \r", "A LOC|image=LEFT|object='caf\xc3\xa9'"},
    {"Program: A=LOC(image=LEFT,object='a, b=c')", "A LOC|image=LEFT|object='a, b=c'"},
    {"A=LIST(query='colors',max=20)", "A LIST|query='colors'|max=20"},
    {"A=LIST(query='colors',max=-1)", "A LIST|query='colors'|max=-1"},
    {"A=LIST(query='a \\\"b\\\" \\\\ c')", "A LIST|query='a \"b\" \\ c'"},

    {"A=VQA(image=LEFT,question='unterminated)",
     "!column 27: the string that starts here has no closing quote"},
    {"A=LOC(image=LEFT,object=['a','b'])", "!LOC wants a string for object, this is a list"},
    {"A=LOC(image=LEFT,object='a', object='b')", "!column 30: object is given twice"},
    {"A=LOC(image=LEFT,object=table)",
     "!LOC reads table, which no earlier step wrote (a text goes between quotes)"},
    {"A=LOC(image=LEFT)", "!LOC has no object="},
    {"A=LOC(image=LEFT,objct='b')", "!LOC has no argument objct (did you mean object?)"},
    {"A=LOC(image='LEFT',object='b')", "!LOC wants an image for image, this is a string"},
    {"A=LOC(LEFT,object='b')", "!expected '=' after LEFT, found ','"},
    {"A=LOC(image=LEFT,object='b'", "!is never closed (add a ')' at the end)"},
    {"A=LOC(image=LEFT,object='b'))", "!the step ends before ')'"},
    {"A=LOC(image=LEFT,object='b') B=COUNT(box=A)", "!the step ends before 'B'"},
    {"A:LOC(image=LEFT,object='b')", "!expected '=' after A, found ':'"},
    {"LOC(image=LEFT,object='b')", "!the step writes no variable (NAME=LOC(...))"},
    {"A=LOCATE(image=LEFT,object='b')", "!there is no step LOCATE"},
    {"A=vqa(image=LEFT,question='b')", "!there is no step vqa (did you mean VQA?)"},
    {"A=VQA(image=LEFT,question=f'b')", "!a string starts with its quote"},
    {"A=VQA(image=X.y,question='b')", "!VQA reads X, which no earlier step wrote"},
    {"A=LIST(query='x',max=99999999999999999999)", "!the number is too large"},
    {"A=EVAL(expr=LEFT)", "!EVAL wants its expr between quotes"},
    {"A=EVAL(expr='{LEFT} == 1')", "!LEFT is an image"},
    {"A=EVAL(expr='{RIHGT} == 1')", "!RIHGT is not written by any earlier step (did you mean RIGHT?)"},
    {"A=EVAL(expr=\"'yes' if 1 > 0 and else 'no'\")",
     "!EVAL: expression, column 20: expected a value, found 'else'"},
    {"A=COUNT(box=LEFT)", "!COUNT wants a box list or objects or a list for box, LEFT is an image"},
    {"# only a comment", "!the program has no steps"},
    {"A\xff=COUNT(box=LEFT)", "!column 2: byte 0xff is not text"},
};

TEST(program_lines) {
    for (int i = 0; i < COUNT_OF(lines); i++) {
        bool wants_error = lines[i].want[0] == '!';
        char text[1024], got[4096];
        snprintf(text, sizeof text, "%s%s", lines[i].line, wants_error ? "" : "\nR=RESULT(var=A)");
        Program p;
        Error e;
        bool ok = parse(&p, &dialect_nlvr, text, &e);
        EXPECT(ok == !wants_error, "%s: %s", lines[i].line, ok ? "accepted" : e.text);
        if (ok) {
            render(got, sizeof got, &p);
            *strchr(got, '\n') = 0;
            EXPECT(!strcmp(got, lines[i].want), "%s: parsed as %s", lines[i].line, got);
        } else {
            EXPECT(strstr(e.text, lines[i].want + wants_error), "%s: %s", lines[i].line, e.text);
            EXPECT(!strncmp(e.text, "line 1", 6) || strstr(e.text, "no steps"), "no line: %s", e.text);
            EXPECT(e.status == FAIL_DATA, "status %d", e.status);
        }
    }
}

/* Mistakes that need more than one line, and the whole sentence. */
static const struct { bool strict; const char *text, *want;
} mistakes[] = {
    {0,
     "ANSWER0=VQA(image=IMAGE,question='a')\nANSWER1=VQA(image=IMAGE,question='b')\n"
     "ANSWER2=EVAL(expr='{ANSWER0} or {ANSWER1}')\n\n# the shipped prompt's mistake\nF=RESULT(var=ANSWER)",
     "line 6: RESULT reads ANSWER, which no earlier step wrote (did you mean ANSWER2?)"},
    {0, "A=VQA(image=IMAGE,question='a')",
     "line 1: the program ends without RESULT (add FINAL_RESULT=RESULT(var=A))"},
    {0, "A=RESULT(var=IMAGE)\nB=RESULT(var=IMAGE)",
     "line 2: a step after RESULT in line 1, which ends the program"},
    {0, "B=LOC(image=IMAGE,object='x')\nC=CROP(image=B,box=B)\nR=RESULT(var=C)",
     "line 2, column 14: CROP wants an image for image, B is a box list"},
    {0, "B=LOC(image=IMAGE,object='x')\nA=EVAL(expr='{B} + 1')\nR=RESULT(var=A)",
     "line 2: EVAL: expression, column 1: + wants a bool or an int or a float or a string, this is a box "
     "list"},
    {0, "A=EVAL(expr='1 > 0')\nC=CROP(image=IMAGE,box=A)\nR=RESULT(var=C)",
     "line 2, column 24: CROP wants a box list or objects for box, A is a bool"},
    {1, "A=VQA(image=IMAGE,question='a')\nA=VQA(image=IMAGE,question='b')\nR=RESULT(var=A)",
     "line 2: A was already written in line 1 (choose another name)"},
    {1, "IMAGE=CROP(image=IMAGE,box=IMAGE)",
     "line 1, column 28: CROP wants a box list or objects for box, IMAGE is an image"},
    {1, "B=LOC(image=IMAGE,object='x')\nIMAGE=CROP(image=IMAGE,box=B)\nR=RESULT(var=IMAGE)",
     "line 2: IMAGE is given and cannot be written (choose another name)"},
};

TEST(program_mistakes) {
    for (int i = 0; i < COUNT_OF(mistakes); i++) {
        Program p;
        Error e;
        Dialect d = dialect_gqa;
        d.strict = mistakes[i].strict;
        EXPECT(!parse(&p, &d, mistakes[i].text, &e), "accepted: %s", mistakes[i].text);
        EXPECT(!strcmp(e.text, mistakes[i].want), "%s\n    wanted: %s", e.text, mistakes[i].want);
    }
}

TEST(program_dressing) {
    /* Fences, comments, Windows line ends, blank lines, a byte order mark: the same program. */
    const char *text =
        "\xef\xbb\xbf```python\r\nProgram:\r\n\r\n  # find it\r\n  B = LOC(image=IMAGE, object='cup')  \r\n"
        "\tN=COUNT(box=B)# all\r\nR=RESULT(var=N)\r\n```\r\n\r\n";
    Program p;
    Error e;
    char got[256];
    EXPECT(parse(&p, &dialect_gqa, text, &e), "%s", e.text);
    EXPECT(p.nsteps == 3 && p.steps[0].line == 5, "%d steps", p.nsteps);
    EXPECT(p.steps[0].ntext == 34 && !memcmp(p.text + p.steps[0].text, "B = LOC(", 8), "text of %d",
           p.steps[0].ntext);
    EXPECT(run(got, sizeof got, &p, "B=3 box(es)", &e) && !strcmp(got, "3"), "%s", e.text);
}

static bool list_is(const int *at, int n, const char *want) {
    char got[64];
    int k = 0;
    got[0] = 0;
    for (int i = 0; i < n && k < 60; i++)
        k += snprintf(got + k, sizeof got - (size_t)k, "%s%d", i ? " " : "", at[i]);
    return !strcmp(got, want);
}

TEST(program_links) {
    /* 0 B, 1 I, 2 A, 3 X (nobody reads it), 4 E, 5 R */
    const char *text =
        "B=LOC(image=IMAGE,object='cup')\nI=CROP(image=IMAGE,box=B)\nA=VQA(image=I,question='q')\n"
        "X=VQA(image=I,question='r')\nE=EVAL(expr='{A} == {A} and len({B}) > 0')\nR=RESULT(var=E)";
    static const struct {
        const char *reads, *waits, *users, *dependants;
        bool needed;
        const char *module;
    } want[] = {
        {"0", "", "1 4", "1 2 3 4 5", true, "LOC"}, {"0 1", "0", "2 3", "2 3 4 5", true, NULL},
        {"2", "1", "4", "4 5", true, "VQA"},        {"2", "1", "", "", false, "VQA"},
        {"3 1", "2 0", "5", "5", true, NULL},       {"5", "4", "", "", true, NULL},
    };
    Program p;
    Error e;
    EXPECT(parse(&p, &dialect_gqa, text, &e), "%s", e.text);
    for (int i = 0; i < 6; i++) {
        const Step *s = &p.steps[i];
        EXPECT(list_is(s->reads, s->nreads, want[i].reads), "step %d", i);
        EXPECT(list_is(s->waits, s->nwaits, want[i].waits), "step %d", i);
        EXPECT(list_is(s->users, s->nusers, want[i].users), "step %d", i);
        EXPECT(list_is(s->dependants, s->ndependants, want[i].dependants), "step %d", i);
        EXPECT(s->needed == want[i].needed, "step %d", i);
        EXPECT(want[i].module ? s->module && !strcmp(s->module, want[i].module) : !s->module, "step %d", i);
    }
}

TEST(program_overwrites) {
    /* The reference keeps one value per name; each write gets its own slot here, readers see the latest. */
    const char *text = "A=VQA(image=IMAGE,question='1')\nB=EVAL(expr='{A} + 1')\nA=EVAL(expr='{A} * 10')\n"
                       "C=EVAL(expr='{A} + {B}')\nR=RESULT(var=C)";
    Program p;
    Error e;
    char got[64];
    EXPECT(parse(&p, &dialect_gqa, text, &e), "%s", e.text);
    EXPECT(run(got, sizeof got, &p, "A=3", &e) && !strcmp(got, "34"), "%s", got);
}

TEST(program_run_errors) {
    static const struct { const char *text, *mock, *want;
    } cases[] = {
        {"A=VQA(image=IMAGE,question='q')\n\nB=EVAL(expr='{A} >= 7')\nR=RESULT(var=B)", "A=many",
         "line 3: EVAL: >= cannot take 'many' and 7"},
        {"A=VQA(image=IMAGE,question='q')\nB=EVAL(expr='4 // {A}')\nR=RESULT(var=B)", "A=0",
         "line 2: EVAL: division by zero"},
        {"A=SEG(image=IMAGE)\nR=RESULT(var=A)", "",
         "line 1: SEG: it needs a panoptic segmentation network (MaskFormer), which this build does not "
         "have"},
        {"A=VQA(image=IMAGE,question='q')\nB=LOC(image=IMAGE,object='x')\nC=EVAL(expr='{A} if 1 else {B}')\n"
         "D=CROP(image=IMAGE,box=C)\nR=RESULT(var=D)",
         "A=red|B=1 box(es)", "line 4: CROP: it wants a box list or objects for box, got a string"},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) {
        Program p;
        Error e;
        char got[64];
        EXPECT(parse(&p, &dialect_gqa, cases[i].text, &e), "%s", e.text);
        EXPECT(!run(got, sizeof got, &p, cases[i].mock, &e), "ran: %s", got);
        EXPECT(!strcmp(e.text, cases[i].want), "%s\n    wanted: %s", e.text, cases[i].want);
    }
}

/* Hostile text: every prefix and many mutations of good programs, and worst cases for size. Nothing may crash, hang, or
 * take more than the memory promised. */
TEST(program_hostile) {
    uint64_t seed = 7;
    Program p;
    Error e;
    int accepted = 0, tried = 0;
    size_t worst = 0;
    for (int i = 0; i < COUNT_OF(examples); i++)
        for (int k = 0; k < 300; k++) {
            char text[1024];
            int n = (int)strlen(examples[i].text);
            memcpy(text, examples[i].text, (size_t)n);
            for (int m = 0; m < 1 + k % 4; m++) {
                seed = seed * 6364136223846793005u + 1442695040888963407u;
                int at = (int)(seed >> 33) % n;
                switch (seed >> 61) {
                case 0: n = at + 1; break; /* cut */
                case 1: text[at] = "'\"\\(){},=#\n\r\t \xe2\x80\x99\xff"[seed >> 40 & 15]; break;
                case 2: text[at] = (char)(seed >> 48); break;
                case 3: text[at] = text[(at + 7) % n]; break;
                default: memmove(text + at, text + at / 2, (size_t)(n - at)); /* repeat a piece */
                }
            }
            Arena *a = fresh();
            tried++;
            accepted += program_parse(&p, a, &dialect_gqa, text, (size_t)n, &e);
            worst = MAX(worst, a->used);
        }
    EXPECT(accepted < tried, "%d of %d mutations accepted", accepted, tried);
    EXPECT(worst < 64 << 10, "%zu bytes", worst);

    static const char *const pieces[] = {"A=VQA(image=IMAGE,question='x')\n",
                                         "'",
                                         "(",
                                         "{",
                                         "\n",
                                         "A=",
                                         "A=EVAL(expr='",
                                         "'a',",
                                         "not ",
                                         "\\",
                                         "A=RESULT(var=A)\n",
                                         "# ",
                                         "\xe2\x80\x99",
                                         "-",
                                         "A=LIST(query='"};
    static char big[PROGRAM_TEXT_MAX + 1];
    for (int i = 0; i < COUNT_OF(pieces); i++)
        for (int k = 0; k < COUNT_OF(pieces); k++) {
            size_t n = 0, len = strlen(pieces[k]);
            n += (size_t)snprintf(big, sizeof big, "%s", pieces[i]);
            for (; n + len <= PROGRAM_TEXT_MAX; n += len) memcpy(big + n, pieces[k], len);
            Arena *a = fresh();
            double start = now_s();
            program_parse(&p, a, &dialect_gqa, big, n, &e);
            EXPECT(now_s() - start < 0.5, "%.3f s for %s and %s", now_s() - start, pieces[i], pieces[k]);
            EXPECT(a->used < 2 << 20, "%zu bytes", a->used);
        }
    EXPECT(!program_parse(&p, fresh(), &dialect_gqa, big, sizeof big, &e), "64 kB and one byte accepted");

    /* As many steps as allowed, each reading all before it. */
    size_t n = 0;
    for (int i = 0; i < PROGRAM_STEPS_MAX - 1; i++) {
        n += (size_t)snprintf(big + n, sizeof big - n, "A%d=EVAL(expr='0", i);
        for (int k = MAX(0, i - 20); k < i; k++) n += (size_t)snprintf(big + n, sizeof big - n, "+A%d", k);
        n += (size_t)snprintf(big + n, sizeof big - n, "')\n");
    }
    n += (size_t)snprintf(big + n, sizeof big - n, "R=RESULT(var=A%d)", PROGRAM_STEPS_MAX - 2);
    EXPECT(program_parse(&p, fresh(), &dialect_gqa, big, n, &e), "%s", e.text);
    EXPECT(p.nsteps == PROGRAM_STEPS_MAX && p.steps[0].ndependants == PROGRAM_STEPS_MAX - 1, "%d", p.nsteps);
    EXPECT(arena.used < 2 << 20, "%zu bytes", arena.used);
}

TEST(answers_as_text) {
    char out[64];
    Error e;
    Value yes = value_str("yes", 3), red = value_str("red", 3), t = value_bool(true), n = value_int(-3),
          f = value_float(2.5), img = value_image(0, 4, 4);
    Boxes *b = boxes_new(fresh(), 2, (Rect){0, 0, 4, 4});
    Value boxes = value_boxes(b);
    static const char *const want[] = {"yes", "True", "red", "red", "yes", "True",
                                       "-3",  "-3",   "2.5", "2.5", "2",   "2"};
    const Value *v[] = {&yes, &red, &t, &n, &f, &boxes};
    for (int i = 0; i < COUNT_OF(want); i++) {
        bool ok = answer_text(out, sizeof out, v[i / 2], (AnswerStyle)(i % 2), &e);
        EXPECT(ok && !strcmp(out, want[i]), "%d: %s, want %s", i, out, want[i]);
    }
    EXPECT(!answer_text(out, sizeof out, &img, ANSWER_YES_NO, &e) && strstr(e.text, "an image"), "%s",
           e.text);
    EXPECT(!answer_text(out, 3, &red, ANSWER_YES_NO, &e), "no room, yet %s", out);
}
