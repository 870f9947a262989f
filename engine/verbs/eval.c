/* eval.c -- the verb `eval`: accuracy of programs, of their steps, and which module is to blame. See engine/eval.h. */
#include <unistd.h>

#include "engine/oracle.h"
#include "engine/verbs/verbs.h"

/* What is open while the verb runs. */
typedef struct Evaluation {
    Run run;
    Dataset data;
    SceneGraphs graphs;
    Module *vqa, *loc, *teacher;
    ModuleAnswerer vqa_answers, loc_answers;
    Blame blame;      /* result[BLAME_NONE] is the programs', with or without eval.blame */
    EvalResult teacher_result;
} Evaluation;

static bool open_graphs(Evaluation *v, const Config *cfg, Error *e) {
    char path[1200];
    static const char *const where[] = {"%s/%s_sceneGraphs.json", "%s/sceneGraphs/%s_sceneGraphs.json"};
    for (int k = 0; !*cfg->eval.graphs && k < COUNT_OF(where); k++) {
        snprintf(path, sizeof path, where[k], cfg->data.dir, cfg->eval.split);
        if (!access(path, R_OK)) break;
    }
    if (*cfg->eval.graphs) snprintf(path, sizeof path, "%s", cfg->eval.graphs);
    if (!scenegraphs_open(&v->graphs, &v->data, path, e)) return fail_in(e, "eval.blame needs scene graphs");
    return v->graphs.nfound ? true : fail_as(e, FAIL_DATA, "%s: it has no graph of any of the dataset's %d images", path, v->data.images.n);
}

static bool open_models(Evaluation *v, const Config *cfg, Error *e) {
    Device *dev = v->run.dev;
    if (!*cfg->model.vqa && !*cfg->model.loc && !*cfg->model.teacher)
        return fail_as(e, FAIL_CONFIG, "model.vqa, model.loc and model.teacher are all empty; name what is to be evaluated");
    if (*cfg->model.vqa) {
        if (!(v->vqa = module_open_for("VQA", cfg->model.vqa, dev, run_type(cfg), MODULE_FROZEN, e)))
            return false;
        module_answerer(&v->vqa_answers, v->vqa, cfg->eval.batch);
    }
    if (*cfg->model.loc) {
        if (!(v->loc = module_open_for("LOC", cfg->model.loc, dev, run_type(cfg), MODULE_FROZEN, e)))
            return false;
        module_answerer(&v->loc_answers, v->loc, cfg->eval.batch);
        v->loc_answers.threshold = (float)cfg->model.loc_threshold;
    }
    return !*cfg->model.teacher || (v->teacher = module_open_end_to_end(cfg->model.teacher, dev, run_type(cfg), e));
}

static bool evaluate(Evaluation *v, const Config *cfg, Error *e) {
    EvalConfig ec = eval_config(&v->data, cfg);
    Module *module[2];
    Answerer *answerer[2], *vqa = v->vqa ? &v->vqa_answers.base : NULL, *loc = v->loc ? &v->loc_answers.base : NULL;
    int n = 0;
    if (vqa) module[n] = v->vqa, answerer[n++] = vqa;
    if (loc) module[n] = v->loc, answerer[n++] = loc;
    ec.module = module;
    ec.nmodules = n;
    bool ok = !n || (cfg->eval.blame ? eval_blame(&v->run, vqa, loc, &v->data, &v->graphs, &ec, &v->blame, e)
                                     : eval_programs(&v->run, answerer, n, &v->data, &ec, &v->blame.result[BLAME_NONE], e));
    return ok && (!v->teacher || eval_end_to_end(&v->run, v->teacher, &v->data, &ec, &v->teacher_result, e));
}

static void print(const Evaluation *v, const Config *cfg) {
    EvalColumn column[BLAME_CASES + 1];
    int n = 0;
    if (v->vqa || v->loc)
        for (int k = 0; k < (cfg->eval.blame ? BLAME_CASES : 1); k++) column[n++] = (EvalColumn){blame_names[k], &v->blame.result[k]};
    if (v->teacher) column[n++] = (EvalColumn){"teacher", &v->teacher_result};
    printf("%s %s\n\n", cfg->data.dir, cfg->eval.split);
    eval_print(stdout, column, n);
    if (cfg->eval.blame && (v->vqa || v->loc)) blame_print(stdout, &v->blame);
}

static bool report(const Evaluation *v, const Config *cfg, Error *e) {
    if (!*cfg->eval.report) return true;
    json_t *o = json_pack("{s:s,s:s,s:s,s:s,s:s}", "dataset", cfg->data.dir, "split", cfg->eval.split, "vqa", cfg->model.vqa, "loc", cfg->model.loc,
                          "teacher", cfg->model.teacher);
    if (!o) return fail_as(e, FAIL_CONFIG, "%s: a path of this run is not UTF-8, so it cannot be written as JSON", cfg->eval.report);
    if (v->vqa || v->loc) json_object_set_new(o, "programs", eval_json(&v->blame.result[BLAME_NONE]));
    if (cfg->eval.blame && (v->vqa || v->loc)) json_object_set_new(o, "blame", blame_json(&v->blame));
    if (v->teacher) json_object_set_new(o, "teacher_end_to_end", eval_json(&v->teacher_result));
    char *text = json_dumps(o, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
    bool ok = text && file_write_atomic(cfg->eval.report, text, strlen(text), e);
    free(text);
    json_decref(o);
    return ok;
}

static Status run(Args *a, Error *e) {
    const Config *cfg = &a->cfg;
    if (a->nwords) {
        fail(e, "\"%s\" is neither a .yaml file nor section.key=value", a->word[0]);
        return FAIL_USAGE;
    }
    static Evaluation v;
    DatasetConfig dc = {.type = cfg->data.kind, .dir = cfg->data.dir, .split = cfg->eval.split, .max_bad = 100};
    bool ok = run_open(&v.run, cfg, e) && dataset_open(&v.data, &dc, e) && (!cfg->eval.blame || open_graphs(&v, cfg, e)) && open_models(&v, cfg, e) && evaluate(&v, cfg, e);
    if (ok) {
        print(&v, cfg);
        ok = report(&v, cfg, e);
    }
    module_close(v.vqa);
    module_close(v.loc);
    module_close(v.teacher);
    scenegraphs_close(&v.graphs);
    dataset_close(&v.data);
    run_close(&v.run);
    return verb_status(ok, e);
}

const Verb verb_eval = {
    .name = "eval",
    .usage = "[config.yaml] [section.key=value ...]",
    .summary = "accuracy of programs by question type, of their steps, and which module is to blame",
    .help = "Runs the programs of data.dir's eval.split with model.vqa and model.loc and compares each result with the gold\n"
            "answer, letter by letter. A program that does not parse or fails counts as wrong; a question whose image cannot\n"
            "be read is left out and counted. With model.teacher that model is asked the same questions end to end.\n"
            "eval.blame=true repeats the run with LOC, VQA and both answered from the scene graphs, and scores each step.\n",
    .sections = {"run", "data", "model", "eval"},
    .run = run,
};
