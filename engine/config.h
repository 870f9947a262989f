/* config.h -- every option of a run: ONE table, a struct made from it, YAML and key=value read into it.
 *
 * An option is one row below. The row is its field in Config, its YAML key, its command-line name (section.key), its
 * default, its bounds and its help line; nothing else has to be written. Reading is in config.c.
 */
#pragma once
#include "engine/base.h"

#define CONFIG_TEXT 512 /* bytes of a text option with its final zero */

/* Row kinds: INT(name, default, min, max, help)   FLOAT(name, default, min, max, help)   BOOL(name, default, help)
 *            TEXT(name, default, help)            CHOICE(name, "default", "a|b|c", help): the index, an enum below */
#define RUN_OPTIONS(INT, FLOAT, BOOL, TEXT, CHOICE)                                                          \
    INT(seed, 1, 0, 2147483647, "every random choice of the run follows from it")                            \
    TEXT(out, "build/run", "folder for checkpoints, metrics and reports")                                    \
    INT(threads, 0, 0, 1024, "CPU threads; 0: one per core")                                                 \
    INT(log_every, 50, 1, 1000000, "steps between two lines of metrics")                                     \
    CHOICE(device, "cpu", "auto|cpu|cuda", "where networks compute; auto: on a graphics card when there is one") \
    CHOICE(precision, "f32", "f32|bf16", "what networks compute in; weights, optimizer and losses are f32 in either case") \
    CHOICE(attention, "own", "own|cudnn", "graphics card, bf16: whose kernels compute attention; cuDNN's library is opened only for cudnn") \
    INT(card, 0, 0, 15, "number of the graphics card")                                                       \
    INT(device_mb, 0, 0, 10000000, "graphics card: most memory for one update's activations, megabytes; 0: all there is") \
    CHOICE(launcher, "auto", "auto|none|mpirun|srun|env", "who started the ranks; auto: whose variables are there") \
    CHOICE(comm, "auto", "auto|tcp|mpi|nccl", "what carries gradients between ranks; auto: memory on one host") \
    FLOAT(comm_timeout_s, 10, 1, 86400, "a rank that is dead or silent ends all others within this time")    \
    FLOAT(bucket_mb, 4, 0.001, 4096, "gradients are summed over ranks in pieces of about this size")         \
    BOOL(shard_optimizer, false, "each rank keeps its share of AdamW's moments (ZeRO-1)")                    \
    BOOL(reproducible, false, "the same bits for any number of ranks that divides run.parts")                \
    INT(parts, 4, 1, 1024, "reproducible: parts of each batch, whose gradients are added as a fixed tree")

#define DATA_OPTIONS(INT, FLOAT, BOOL, TEXT, CHOICE)                                                         \
    TEXT(kind, "gqa", "kind of dataset")                                                                     \
    TEXT(dir, "", "folder of the dataset")                                                                   \
    TEXT(split, "train", "part of the dataset to train on")                                                  \
    TEXT(val_split, "val", "part of the dataset that train.eval_every looks at")                             \
    TEXT(val_dir, "", "folder of the validation part; empty: data.dir")                                      \
    TEXT(val_kind, "steps", "kind of dataset in data.val_dir")                                               \
    TEXT(mix_dir, "", "train: a second dataset, from which some updates are drawn")                          \
    TEXT(mix_kind, "gqa", "kind of the second dataset")                                                      \
    FLOAT(mix_share, 0, 0, 1, "share of the updates that take the second dataset")                           \
    INT(workers, 1, 0, 256, "threads that decode images; 0: the training thread does it")                    \
    INT(limit, 0, 0, 2147483647, "use only the first questions; 0: all")                                     \
    INT(cache_mb, 0, 0, 1000000, "decoded images kept in memory, megabytes")                                 \
    FLOAT(max_bad_percent, 5, 0, 100, "share of unreadable images above which the run stops")

#define SCENES_OPTIONS(INT, FLOAT, BOOL, TEXT, CHOICE)                                                       \
    TEXT(dir, "", "folder to write")                                                                         \
    CHOICE(domain, "hard", "clean|hard", "plain ground, or textures, colour casts, noise, blur and clutter") \
    INT(train, 2000, 0, 10000000, "images of the training part")                                             \
    INT(val, 400, 0, 10000000, "images of the validation part")                                              \
    INT(test, 400, 0, 10000000, "images of the test part")                                                   \
    INT(questions, 8, 0, 32, "questions per image")                                                          \
    INT(steps, 0, 0, 64, "labelled module calls per image; 0: no steps file")                                \
    INT(statements, 2, 0, 16, "two-image statements per pair of images")                                     \
    FLOAT(single, 0, 0, 1, "share of images with one large object, which get no questions")                  \
    FLOAT(few, 0, 0, 1, "share of images with two or three objects, which get no questions")

#define MODEL_OPTIONS(INT, FLOAT, BOOL, TEXT, CHOICE)                                                        \
    TEXT(vqa, "", "model folder of the VQA module")                                                          \
    TEXT(loc, "", "model folder of the LOC module")                                                          \
    FLOAT(loc_threshold, 0.1, 0, 1, "LOC: boxes with a score above it are found (VisProg: 0.1)")             \
    TEXT(clip, "", "run: model folder that SELECT and CLASSIFY ask (CLIP)")                                  \
    TEXT(lists, "", "run: JSON file of the lists that LIST knows: {\"garden birds\": [\"robin\", \"wren\"]}")  \
    TEXT(label_font, "", "run: font file of TAG's labels; empty: Debian's DejaVuSansMono-Bold.ttf")          \
    TEXT(emoji_font, "", "run: font file of EMOJI's pictures; empty: Debian's NotoColorEmoji.ttf")           \
    TEXT(teacher, "", "model folder of the end-to-end teacher")

#define TRAIN_OPTIONS(INT, FLOAT, BOOL, TEXT, CHOICE)                                                        \
    TEXT(module, "vqa", "which module is trained: vqa, loc or teacher")                                      \
    INT(steps, 1000, 0, 1000000000, "optimizer steps")                                                       \
    BOOL(from_scratch, false, "draw initial weights from run.seed instead of reading model.safetensors")     \
    TEXT(grow_from, "", "with from_scratch: model folder of a smaller network to start from")                \
    INT(batch, 64, 1, 65536, "examples of one forward pass")                                                 \
    INT(per_image, 4, 1, 1024, "examples of a batch that share an image")                                    \
    INT(accumulate, 1, 1, 65536, "forward passes of one optimizer step")                                     \
    FLOAT(lr, 1e-3, 0, 10, "highest learning rate")                                                          \
    CHOICE(schedule, "linear", "linear|cosine|constant", "how the learning rate falls after the warm-up")    \
    FLOAT(warmup, 0.05, 0, 1, "share of the steps in which the learning rate rises")                         \
    FLOAT(weight_decay, 0.01, 0, 10, "decoupled; not on biases and norms")                                   \
    FLOAT(beta1, 0.9, 0, 0.999999, "AdamW: memory of the mean")                                              \
    FLOAT(beta2, 0.98, 0, 0.9999999, "AdamW: memory of the square")                                          \
    FLOAT(eps, 1e-8, 1e-30, 1, "AdamW: added to the root")                                                   \
    FLOAT(clip, 1, 0, 1000000, "largest global gradient norm; 0: no clipping")                               \
    FLOAT(label_smoothing, 0, 0, 0.999, "share of the target spread over all answers")                       \
    FLOAT(augment, 0, 0, 1, "strength of photometric augmentation of data.dir's images")                     \
    FLOAT(augment_ground, 0, 0, 1, "share of data.dir's images whose plain ground is painted over")          \
    FLOAT(loc_l1, 1, 0, 1000, "LOC: weight of the box distance, in matching and loss")                       \
    FLOAT(loc_giou, 1, 0, 1000, "LOC: weight of the generalised IoU term, in matching and loss")             \
    FLOAT(loc_alpha, 0.3, -1, 1, "LOC: focal loss, weight of positives; negative: no balancing")             \
    FLOAT(loc_gamma, 2, 0, 10, "LOC: focal loss, how little easy patches count; 0: plain cross entropy")     \
    INT(loc_repeat, 1, 1, 64, "LOC: patches matched to each box")                                            \
    INT(save_every, 500, 0, 1000000000, "steps between checkpoints; 0: only the last")                       \
    INT(eval_every, 0, 0, 1000000000, "steps between evaluations; 0: none")                                  \
    BOOL(resume, true, "go on from the checkpoint in run.out when there is one")                             \
    INT(lora_rank, 0, 0, 4096, "rank of the adapters that alone learn, merged when saved; 0: all parameters learn") \
    FLOAT(lora_alpha, 0, 0, 65536, "adapters count alpha/rank times; 0: once")                               \
    TEXT(freeze, "", "beginnings of the names of parameters that do not learn, with spaces between")          \
    TEXT(lr_scale, "", "learning rates as multiples, by beginnings of names: NAME=FACTOR ...")               \
    FLOAT(layer_decay, 1, 0.01, 1, "each block's learning rate as a multiple of the next one's")

#define DISTILL_OPTIONS(INT, FLOAT, BOOL, TEXT, CHOICE)                                                      \
    FLOAT(temperature, 2, 0.01, 100, "softens teacher and student alike in the soft term")                   \
    FLOAT(soft, 0.5, 0, 1000, "weight of the soft term: the teacher's distribution")                         \
    FLOAT(hard, 0.5, 0, 1000, "weight of the hard term: the teacher's answer")                               \
    FLOAT(loc_class, 1, 0, 1000, "LOC: weight of the class term")                                            \
    FLOAT(loc_l1, 0, 0, 1000, "LOC: weight of the box distance to the best verified box")                    \
    FLOAT(loc_giou, 0, 0, 1000, "LOC: weight of the generalised IoU term, likewise")                         \
    FLOAT(retain, 0.1, 0, 1000, "weight of staying near the starting outputs on the replay set")             \
    FLOAT(confidence, 0.5, 0, 1, "VQA: labels below this probability of the teacher are dropped")               \
    FLOAT(loc_yes, 0.55, 0.5, 1, "LOC: a verified box teaches \"here\" from this probability on")             \
    FLOAT(loc_no, 0.15, 0, 0.5, "LOC: a verified box teaches \"not here\" up to this probability")           \
    BOOL(filter_executes, true, "keep labels only of programs that execute")                                 \
    BOOL(filter_confident, true, "keep labels only above confidence")                                        \
    BOOL(filter_replay, true, "keep labels only when the program with them gives the task's answer")         \
    BOOL(use_answer, true, "use the task's answer where the program fixes the last step's")                  \
    CHOICE(steer, "teacher", "student|teacher", "whose answers the rest of a training program is run on")     \
    INT(batch, 256, 1, 65536, "questions of one forward pass of a module")                                   \
    INT(replay_batch, 32, 1, 65536, "calls of the replay set in one step")                                   \
    FLOAT(answer_mass, 0.05, 0, 1, "use_answer: the teacher must give the answers that the program allows this probability") \
    TEXT(replay_dir, "", "dataset of the retain term; empty: none")                                          \
    INT(candidates, 8, 1, 32, "LOC: boxes that the teacher verifies per question")                           \
    CHOICE(verify, "words", "exists|words", "LOC: asks if the object is there, or also what it is, its color, its pattern") \
    INT(programs, 64, 1, 65536, "programs of one step")                                                      \
    INT(per_image, 8, 1, 65536, "most programs of one image in a step: they share its towers and its proposals") \
    FLOAT(loc_unasked, 0.3, 0, 1, "LOC: weight of \"not here\" on patches that no verified box covers")         \
    INT(loc_others, 4, 0, 64, "LOC: with reuse, nouns of the batch verified on each rectangle besides what was asked") \
    INT(loc_repeat, 3, 1, 64, "LOC: most patches that learn to see one verified box")                        \
    INT(reuse, 0, 0, 64, "times that the lessons of a step are learnt again, in updates of their own")       \
    INT(lag, 30, 1, 100000, "steps between two of these")                                                    \
    INT(steps, 200, 0, 1000000000, "optimizer steps")                                                        \
    FLOAT(lr_vqa, 1e-4, 0, 10, "highest learning rate of the VQA module")                                    \
    FLOAT(lr_loc, 1e-4, 0, 10, "highest learning rate of the LOC module")

#define EVAL_OPTIONS(INT, FLOAT, BOOL, TEXT, CHOICE)                                                         \
    TEXT(split, "test", "part of the dataset to evaluate on")                                                \
    INT(limit, 0, 0, 2147483647, "use only the first questions; 0: all")                                     \
    BOOL(blame, false, "also replace one module at a time by the ground truth")                              \
    TEXT(graphs, "", "scene graphs for eval.blame; empty: SPLIT_sceneGraphs.json in data.dir")               \
    TEXT(report, "", "file for the results as JSON; empty: none")                                            \
    INT(batch, 256, 1, 65536, "programs run at once")

#define TRACE_OPTIONS(INT, FLOAT, BOOL, TEXT, CHOICE)                                                        \
    TEXT(path, "", "distill: file for the trace of every step (JSON lines); empty: none")

#define BENCH_OPTIONS(INT, FLOAT, BOOL, TEXT, CHOICE)                                                        \
    FLOAT(ms, 0, 0, 3600000, "least time of one row, milliseconds; 0: the benchmark's own")                  \
    INT(mb, 0, 0, 1000000, "kernels, step: memory of operands; comm: the largest message; megabytes")        \
    TEXT(json, "", "file for the results as JSON; empty: none")                                              \
    INT(batch, 0, 0, 65536, "kernels, step, loader: examples at a time; 0: the row's own")                   \
    INT(text, 0, 0, 4096, "step: tokens of a question; 0: the row's own")                                    \
    INT(side, 0, 0, 16384, "step: pixels of an image's side; loader: of the patches' image; 0: the row's own")

#define CONFIG_SECTIONS(X)                                                                                   \
    X(run, RUN_OPTIONS)                                                                                      \
    X(scenes, SCENES_OPTIONS)                                                                                \
    X(data, DATA_OPTIONS)                                                                                    \
    X(model, MODEL_OPTIONS)                                                                                  \
    X(train, TRAIN_OPTIONS)                                                                                  \
    X(distill, DISTILL_OPTIONS)                                                                              \
    X(eval, EVAL_OPTIONS)                                                                                    \
    X(trace, TRACE_OPTIONS)                                                                                  \
    X(bench, BENCH_OPTIONS)

/* The choices in the order of their rows. */
enum { LAUNCH_AUTO, LAUNCH_NONE, LAUNCH_MPIRUN, LAUNCH_SRUN, LAUNCH_ENV };
enum { COMM_AUTO, COMM_TCP, COMM_MPI, COMM_NCCL };
enum { SCHEDULE_LINEAR, SCHEDULE_COSINE, SCHEDULE_CONSTANT };
enum { DEVICE_AUTO, DEVICE_CPU, DEVICE_CUDA };
enum { PRECISION_F32, PRECISION_BF16 };
enum { ATTENTION_OWN, ATTENTION_CUDNN };
enum { STEER_STUDENT, STEER_TEACHER };
enum { VERIFY_EXISTS, VERIFY_WORDS };

#define INT_FIELD(name, def, min, max, help)   int name;
#define FLOAT_FIELD(name, def, min, max, help) double name;
#define BOOL_FIELD(name, def, help)            bool name;
#define TEXT_FIELD(name, def, help)            char name[CONFIG_TEXT];
#define CHOICE_FIELD(name, def, choices, help) int name;
typedef struct Config {
#define X(section, OPTIONS) struct { OPTIONS(INT_FIELD, FLOAT_FIELD, BOOL_FIELD, TEXT_FIELD, CHOICE_FIELD) } section;
    CONFIG_SECTIONS(X)
#undef X
} Config; /* no pointers inside: copy it as you like */

void config_defaults(Config *c);

/* Defaults, then the YAML file (path NULL: none), then `n` assignments "section.key=value" in order. On failure e
 * (status FAIL_CONFIG) says where: FILE:LINE, or the argument; an unknown name comes with the nearest known one. */
bool config_load(Config *c, const char *path, const char *const *assignments, int n, Error *e);
/* Reads YAML text into c, over what is there; `name` stands for the file in messages. At most 1 MB, no aliases,
 * one document. */
bool config_parse(Config *c, const char *name, const char *text, size_t size, Error *e);
bool config_set(Config *c, const char *assignment, Error *e);

/* The whole config as YAML that config_parse reads back to an equal one. */
void config_print(FILE *f, const Config *c);
/* The table: names, defaults, bounds, help. section NULL: all; false when there is no such section. */
bool config_help(FILE *f, const char *section);
