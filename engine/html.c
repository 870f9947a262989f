/* html.c -- programs as a page. See html.h.
 *
 * Pictures are SVG: a window (viewBox) in pixels of the original image, a <use> of the one embedded JPEG, and rectangles
 * over it, so boxes need no drawing of ours and stay sharp at any zoom.
 */
#include "engine/html.h"

#include <errno.h>
#include <math.h>

#include "data/jpeg.h"
#include "engine/trace.h"
#include "kernels/cpu/image.h"

enum {
    INPUT_SIDE = 896,          /* an input's copy: longer side at most, */
    INPUT_BYTES = 250 << 10,   /* and size of its JPEG */
    MADE_SIDE = 480,           /* the only copy of an image that a step made */
    MADE_BYTES = 22 << 10,
    CROP_SIDE = 240,           /* a crop's own copy */
    CROP_BYTES = 8 << 10,
    CROP_BYTES_EACH = 6 << 10, /* budget of own copies: so much per program, */
    CROP_BYTES_FREE = 64 << 10, /* and so much at once */
    CROPS_MAX = 2048,
    SHOWN_W = 208, SHOWN_H = 156, /* of a picture on the page, CSS pixels */
    BOXES_DRAWN = 32, SCORES_TOLD = 6,
};

static const char style[] =
    ":root{--bg:#f4f5f7;--card:#fff;--ink:#1c2330;--dim:#6b7483;--line:#e3e6eb;--code:#f7f8fa;--red:#d92d20;--blue:#2563eb;"
    "--green:#067647;--violet:#7c3aed;--amber:#b54708;--redbg:#fef3f2;--greenbg:#ecfdf3;--amberbg:#fffaeb}\n"
    "@media(prefers-color-scheme:dark){:root{--bg:#12151b;--card:#1b2029;--ink:#e6e9ef;--dim:#98a2b3;--line:#2e3542;--code:#151a22;"
    "--red:#ff6b5e;--blue:#6ea0ff;--green:#4cc38a;--violet:#b794f6;--amber:#f5b454;--redbg:#2d1a1b;--greenbg:#14271f;--amberbg:#2b2317}}\n"
    "*{box-sizing:border-box}\n"
    "body{margin:0 auto;padding:28px 20px 48px;max-width:1120px;background:var(--bg);color:var(--ink);display:flex;flex-direction:column;"
    "gap:18px;font:15px/1.45 system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans',sans-serif}\n"
    "header{order:0}nav{order:1}article{order:2}\n"
    "h1{font-size:21px;margin:0 0 2px}h2{font-size:17px;margin:0;font-weight:600;overflow-wrap:anywhere}\n"
    ".dim{color:var(--dim)}.small{font-size:13px}\n"
    "code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;font-size:13px}\n"
    ".inputs{display:flex;flex-wrap:wrap;gap:16px;margin-top:14px}figure{margin:0}.inputs svg{max-width:100%;height:auto}figcaption{font-size:13px;color:var(--dim);margin-top:4px}\n"
    "article,nav{background:var(--card);border:1px solid var(--line);border-radius:12px;overflow:hidden}\n"
    "nav{padding:10px 18px}nav summary{cursor:pointer;font-weight:600}nav ol{columns:2 380px;column-gap:36px;margin:8px 0 6px;padding-left:34px}\n"
    "nav li{break-inside:avoid;padding:2px 0;color:var(--dim)}nav li a{color:inherit;text-decoration:none;display:flex;gap:10px}\n"
    "nav li b{max-width:50%;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}nav li a:hover .q{text-decoration:underline}nav .q{color:var(--ink);flex:1;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}\n"
    ".top{display:flex;gap:14px;align-items:center;padding:14px 18px}.top>div{flex:1;min-width:0}\n"
    ".verdict{border-radius:8px;padding:5px 14px;font-weight:650;font-size:16px;background:var(--greenbg);color:var(--green);max-width:45%;"
    "overflow-wrap:anywhere}.verdict.bad{background:var(--redbg);color:var(--red)}\n"
    ".say{padding:10px 18px;background:var(--redbg);color:var(--red);border-top:1px solid var(--line);overflow-wrap:anywhere}\n"
    ".step{display:grid;grid-template-columns:26px minmax(0,1fr) auto;gap:4px 12px;padding:11px 18px;border-top:1px solid var(--line);"
    "border-left:4px solid transparent}\n"
    ".step.vqa{border-left-color:var(--violet)}.step.loc{border-left-color:var(--red)}.step.crop{border-left-color:var(--green)}.step.edit{border-left-color:var(--amber)}.step.ask{border-left-color:var(--blue)}\n"
    ".step.bad{background:var(--redbg);border-left-color:var(--red)}.step.off{opacity:.5}\n"
    ".n{color:var(--dim);font-size:13px;text-align:right;font-variant-numeric:tabular-nums;padding-top:2px}\n"
    ".code{overflow-wrap:anywhere;white-space:pre-wrap}.v{color:var(--blue)}.f{font-weight:650}.s{color:var(--amber)}\n"
    ".loc .f{color:var(--red)}.vqa .f{color:var(--violet)}.crop .f{color:var(--green)}.edit .f{color:var(--amber)}.ask .f{color:var(--blue)}\n"
    ".out{margin-top:6px}.out b{font-size:16px}\n"
    ".pics{display:flex;gap:8px;align-items:center;justify-content:flex-end}.pics svg,.inputs svg{border-radius:6px;background:#8884;display:block}\n"
    ".arrow{color:var(--dim);font-size:18px}\n"
    ".chip{display:inline-flex;align-items:center;gap:5px;font-size:13px;padding:0 9px;margin:2px 5px 2px 0;border:1px solid var(--line);"
    "border-radius:99px;font-variant-numeric:tabular-nums}.chip i{width:9px;height:9px;border-radius:2px;background:var(--blue)}"
    ".chip.first i{background:var(--red)}\n"
    ".flag{display:inline-block;font-size:12px;padding:1px 8px;border-radius:99px;background:var(--amberbg);color:var(--amber);"
    "border:1px solid currentColor;margin:2px 6px 2px 0}\n"
    ".bars{display:grid;grid-template-columns:minmax(48px,max-content) 150px 48px;gap:3px 10px;align-items:center;margin-top:6px;font-size:13px}\n"
    ".bars span{overflow-wrap:anywhere}.track{height:9px;border-radius:5px;background:var(--line);overflow:hidden}\n"
    ".track i{display:block;height:100%;background:var(--violet);opacity:.45}.bars .best i{opacity:1}.pc{text-align:right;font-variant-numeric:tabular-nums}\n"
    ".why{color:var(--red);margin-top:4px;overflow-wrap:anywhere}\n"
    "pre{margin:0;padding:10px 18px;background:var(--code);border-top:1px solid var(--line);overflow-x:auto;white-space:pre-wrap;overflow-wrap:anywhere}\n"
    "pre span{display:block}pre .bad{background:var(--redbg);color:var(--red)}pre i{display:inline-block;width:34px;color:var(--dim);font-style:normal}\n"
    "@media(max-width:640px){.step{grid-template-columns:22px minmax(0,1fr)}.pics{grid-column:2;justify-content:flex-start}}\n"
    "@media print{body{background:#fff}article{break-inside:avoid}}\n";

/* ---- text ----------------------------------------------------------------------------------------- */

void html_put(FILE *f, const char *s, size_t n) {
    for (size_t i = 0; i < n;) {
        const unsigned char c = (unsigned char)s[i];
        const int k = utf8_length(s + i, n - i);
        if (!k || (c < 0x20 && c != '\n' && c != '\t') || c == 0x7f) {
            fputs("\xef\xbf\xbd", f);
            i++;
            continue;
        }
        switch (c) {
        case '&': fputs("&amp;", f); break;
        case '<': fputs("&lt;", f); break;
        case '>': fputs("&gt;", f); break;
        case '"': fputs("&quot;", f); break;
        case '\'': fputs("&#39;", f); break;
        default: fwrite(s + i, 1, (size_t)k, f);
        }
        i += (size_t)k;
    }
}

static void put(FILE *f, const char *s) { html_put(f, s, strlen(s)); }

static void put_base64(FILE *f, const uint8_t *p, size_t n) {
    static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < n; i += 3) {
        const uint32_t b1 = i + 1 < n ? p[i + 1] : 0, b2 = i + 2 < n ? p[i + 2] : 0, w = (uint32_t)p[i] << 16 | b1 << 8 | b2;
        const char four[4] = {digit[w >> 18], digit[w >> 12 & 63], i + 1 < n ? digit[w >> 6 & 63] : '=', i + 2 < n ? digit[w & 63] : '='};
        fwrite(four, 1, 4, f);
    }
}

/* A value in a few words. */
static void put_value(FILE *f, const Value *v) {
    char text[FLOAT_TEXT];
    switch (v->kind) {
    case VAL_NONE: fputs("None", f); break;
    case VAL_BOOL: fputs(v->b ? "True" : "False", f); break;
    case VAL_INT: fprintf(f, "%" PRId64, v->i); break;
    case VAL_FLOAT:
        float_text(text, v->f);
        fputs(text, f);
        break;
    case VAL_STR:
        fputs("&#39;", f);
        html_put(f, v->str.s, (size_t)v->str.n);
        fputs("&#39;", f);
        break;
    case VAL_IMAGE: {
        const Rect r = v->image.rect;
        fprintf(f, "%d × %d pixels", rect_w(r), rect_h(r));
        if (!image_is_made(v->image.id) || r.x0 || r.y0) fprintf(f, " at (%d, %d)", r.x0, r.y0);
        break;
    }
    case VAL_BOXES:
    case VAL_OBJECTS:
        if (v->boxes->n) fprintf(f, "%d box%s", v->boxes->n, v->boxes->n == 1 ? "" : "es");
        else fputs("nothing found", f);
        break;
    case VAL_LIST:
        for (int i = 0; i < v->list.n; i++) {
            if (i) fputs(", ", f);
            put_value(f, &v->list.at[i]);
        }
        break;
    default: break;
    }
}

/* ---- pictures ------------------------------------------------------------------------------------- */

/* The rectangle as a JPEG of at most `bytes` and `side` pixels: worse quality first, then smaller. */
static bool shrink(const ImageView *im, Rect r, int side, size_t bytes, float *scale, unsigned char **out, size_t *size, Error *e) {
    for (;; side /= 2) {
        const double s = MIN(1.0, (double)side / MAX(rect_w(r), rect_h(r)));
        const int w = MAX(1, (int)lround(rect_w(r) * s)), h = MAX(1, (int)lround(rect_h(r) * s));
        uint8_t *rgb = xcalloc((size_t)w * (size_t)h, 3);
        image_resize_u8(rgb, w, h, im, r, BICUBIC);
        *scale = (float)s;
        for (int quality = 85; quality > 30; quality -= 18) {
            if (!jpeg_encode(&(ImageView){rgb, w, h}, quality, out, size, e)) {
                free(rgb);
                return false;
            }
            if (*size <= bytes || (quality <= 49 && side <= 16)) {
                free(rgb);
                return true;
            }
            free(*out);
        }
        free(rgb);
    }
}

/* Puts an <image> that covers rectangle r of its image's pixels; whoever shows it names it by #id. */
static int64_t embed(Html *h, const ImageView *im, Rect r, char kind, int64_t id, int side, size_t bytes, float *scale) {
    unsigned char *jpeg;
    size_t size;
    if (!shrink(im, r, side, bytes, scale, &jpeg, &size, &h->why)) {
        h->failed = true;
        *scale = 0;
        return 0;
    }
    fprintf(h->f, "<svg width=\"0\" height=\"0\" style=\"position:absolute\" aria-hidden=\"true\"><image id=\"%c%" PRId64 "\" x=\"%d\" y=\"%d\" width=\"%d\" "
                  "height=\"%d\" preserveAspectRatio=\"none\" href=\"data:image/jpeg;base64,", kind, id, r.x0, r.y0, rect_w(r), rect_h(r));
    put_base64(h->f, jpeg, size);
    fputs("\"/></svg>\n", h->f);
    free(jpeg);
    return (int64_t)(size + 2) / 3 * 4 + 200;
}

static int find_image(const Html *h, uint64_t id) {
    for (int i = 0; i < h->nimages; i++)
        if (h->image[i].id == id) return i;
    return -1;
}

/* What shows a rectangle best: 'i' the input's copy, 'm' that of an image that a step made, 'c' a copy of its own. */
typedef struct Source { char kind; int64_t id; } Source;

/* The image as it is in the page; it is put there when it is new. */
static Source source_for_made(Html *h, const Value *v) {
    for (int64_t i = 0; i < h->nmade; i++)
        if (h->made[i] == v->image.id) return (Source){'m', i};
    float scale;
    const ImageView *im = v->image.pixels;
    embed(h, im, (Rect){0, 0, im->w, im->h}, 'm', h->nmade, MADE_SIDE, MADE_BYTES, &scale);
    GROW(h->made, h->made_cap, h->nmade + 1);
    h->made[h->nmade++] = v->image.id;
    return (Source){'m', h->nmade - 1};
}

/* For an image value. Not to be called inside an open picture: what is new is embedded here, crops when the budget allows. */
static Source source_for(Html *h, const Value *v) {
    if (image_is_made(v->image.id)) return source_for_made(h, v);
    const int image = find_image(h, v->image.id);
    const Rect r = v->image.rect;
    Source whole = {'i', image};
    const float s = h->scale[image];
    const int w = rect_w(r), hh = rect_h(r);
    if (s >= 1 || s * (float)MAX(w, hh) >= SHOWN_W || s == 0) return whole;
    for (int64_t i = 0; i < h->ncrops; i++)
        if (h->crop[i].image == image && !memcmp(&h->crop[i].rect, &r, sizeof r)) return (Source){'c', i};
    if (h->ncrops == CROPS_MAX || h->crop_bytes + CROP_BYTES * 4 / 3 > CROP_BYTES_FREE + CROP_BYTES_EACH * h->nprograms) return whole;
    float scale;
    int64_t bytes = embed(h, &h->image[image].view, r, 'c', h->ncrops, CROP_SIDE, CROP_BYTES, &scale);
    if (!bytes) return whole;
    h->crop_bytes += bytes;
    GROW(h->crop, h->crop_cap, h->ncrops + 1);
    h->crop[h->ncrops++] = (struct HtmlCrop){image, r};
    return (Source){'c', h->ncrops - 1};
}

/* Opens an SVG that shows the rectangle, at most w x h on the page; the caller draws over it and puts </svg>. */
static void picture(Html *h, Source s, Rect r, int w, int hh, const char *what) {
    const double scale = MIN(MIN((double)w / rect_w(r), (double)hh / rect_h(r)), 4.0);
    fprintf(h->f, "<svg width=\"%d\" height=\"%d\" viewBox=\"%d %d %d %d\" preserveAspectRatio=\"none\" role=\"img\"><title>", MAX(4, (int)lround(rect_w(r) * scale)),
            MAX(4, (int)lround(rect_h(r) * scale)), r.x0, r.y0, rect_w(r), rect_h(r));
    put(h->f, what);
    fprintf(h->f, "</title><use href=\"#%c%" PRId64 "\"/>", s.kind, s.id);
}

static void outline(FILE *f, Rect r, const char *color, double width) {
    fprintf(f, "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"none\" stroke=\"%s\" stroke-width=\"%g\" vector-effect=\"non-scaling-stroke\">",
            r.x0, r.y0, rect_w(r), rect_h(r), color, width);
}

/* On the rectangle `of`: the best box in red, the others in blue, the best on top. Objects are all as good: they are blue. */
static void draw_boxes(Html *h, const Value *v, Rect of, bool strict) {
    const Boxes *b = v->boxes;
    for (int i = MIN(b->n, BOXES_DRAWN) - 1; i >= 0; i--) {
        const bool best = !i && v->kind == VAL_BOXES;
        Rect r;
        if (!box_rect(&r, &b->box[i], b->exact, rect_w(of), rect_h(of), strict)) continue;
        r = (Rect){of.x0 + r.x0, of.y0 + r.y0, of.x0 + r.x1, of.y0 + r.y1};
        outline(h->f, r, best ? "#ef2b1d" : "#2563eb", best ? 2.5 : 1.75);
        fputs("<title>", h->f);
        if (b->classes) {
            html_put(h->f, b->classes[i].name.s, (size_t)b->classes[i].name.n);
            fprintf(h->f, " (%.1f)", b->classes[i].score);
        } else {
            fprintf(h->f, "%.3f", (double)b->box[i].score);
        }
        fprintf(h->f, "  [%d, %d, %d, %d]</title></rect>", r.x0, r.y0, r.x1, r.y1);
    }
}

/* What a slot held when step i ran: an input, or what an earlier step wrote; VAL_NONE when that failed. */
static Value slot_value(const Html *h, const ProgramView *p, int slot, int i) {
    if (slot < p->prog->ninputs && slot < h->nimages) {
        const HtmlImage *im = &h->image[slot];
        return value_image(im->id, im->view.w, im->view.h);
    }
    for (int s = 0; s < i; s++)
        if (p->prog->steps[s].out == slot && p->step[s].value) return *p->step[s].value;
    return value_none();
}

/* The value of the step's first argument of this kind, when it is a variable. */
static Value argument(const Html *h, const ProgramView *p, int i, ValueKind kind) {
    const Step *st = &p->prog->steps[i];
    for (int k = 0; k < st->kind->nargs; k++) {
        if (st->arg[k] == ARG_NONE || st->arg[k] < 0) continue;
        const Value v = slot_value(h, p, st->arg[k], i);
        if (v.kind == kind) return v;
    }
    return value_none();
}

/* Closes the picture before, and shows what came of it. */
static void picture_after(Html *h, Source s, Rect r, int w, int hh, const char *what) {
    fputs("</svg><span class=\"arrow\">→</span>", h->f);
    picture(h, s, r, w, hh, what);
    fputs("</svg>", h->f);
}

/* The image argument of a step, with the boxes that came of it; for a crop, where it lies and what it shows; for a step that draws,
 * before (with its objects) and after. */
static void put_pictures(Html *h, const ProgramView *p, int i) {
    const Step *st = &p->prog->steps[i];
    const Value *value = p->step[i].value;
    const Value from = argument(h, p, i, VAL_IMAGE);
    if (from.kind != VAL_IMAGE || (!image_is_made(from.image.id) && find_image(h, from.image.id) < 0)) return;
    const bool image = value && value->kind == VAL_IMAGE && st->kind->role == STEP_PLAIN, drawn = image && value->image.id != from.image.id;
    const Rect r = from.image.rect;
    const Source s = source_for(h, &from), to = image ? source_for(h, value) : s;
    fputs("<div class=\"pics\">", h->f);
    if (drawn) {
        Value objects = argument(h, p, i, VAL_OBJECTS);
        if (objects.kind == VAL_NONE) objects = argument(h, p, i, VAL_BOXES);
        picture(h, s, r, SHOWN_W, SHOWN_H, "before");
        if (objects.kind != VAL_NONE) draw_boxes(h, &objects, r, p->prog->strict); /* as the step takes them: on this image, wherever they were found */
        picture_after(h, to, value->image.rect, SHOWN_W, SHOWN_H, "after");
    } else if (image) {
        const Rect c = value->image.rect;
        picture(h, s, r, SHOWN_W / 2, SHOWN_H * 3 / 4, "where the crop lies");
        fprintf(h->f, "<path fill=\"#000\" fill-opacity=\".5\" fill-rule=\"evenodd\" d=\"M%d %dH%dV%dH%dZM%d %dH%dV%dH%dZ\"/>", r.x0, r.y0, r.x1, r.y1, r.x0,
                c.x0, c.y0, c.x1, c.y1, c.x0);
        outline(h->f, c, "#22c55e", 2);
        fputs("</rect>", h->f);
        picture_after(h, to, c, SHOWN_W / 2, SHOWN_H * 3 / 4, "the crop");
    } else {
        const bool result = st->kind->role == STEP_RESULT;
        picture(h, s, r, result ? 2 * SHOWN_W : SHOWN_W, result ? 2 * SHOWN_H : SHOWN_H, st->module ? "what the module was shown" : "the image");
        if (value && (value->kind == VAL_BOXES || value->kind == VAL_OBJECTS)) draw_boxes(h, value, value->boxes->of, p->prog->strict);
        fputs("</svg>", h->f);
    }
    fputs("</div>", h->f);
}

/* ---- steps ---------------------------------------------------------------------------------------- */

/* ANSWER0=VQA(image=IMAGE0,question='...') with the name, the step and the text in their colours. */
static void put_code(FILE *f, const char *s, int n) {
    const char *end = s + n, *eq = memchr(s, '=', (size_t)n), *open = eq ? memchr(eq, '(', (size_t)(end - eq)) : NULL;
    if (!open) {
        html_put(f, s, (size_t)n);
        return;
    }
    fputs("<span class=\"v\">", f);
    html_put(f, s, (size_t)(eq - s));
    fputs("</span>=<span class=\"f\">", f);
    html_put(f, eq + 1, (size_t)(open - eq - 1));
    fputs("</span>", f);
    const char *q = open;
    while (q < end && *q != '\'' && *q != '"') q++;
    const char *last = q < end ? memrchr(q, *q, (size_t)(end - q)) : end; /* apostrophes inside are part of the text */
    html_put(f, open, (size_t)(q - open));
    if (q < end) {
        fputs("<span class=\"s\">", f);
        html_put(f, q, (size_t)(last + 1 - q));
        fputs("</span>", f);
        html_put(f, last + 1, (size_t)(end - last - 1));
    }
}

static void put_flags(FILE *f, const Value *v) {
    if (v->kind != VAL_IMAGE) return;
    if (v->missing) fputs("<span class=\"flag\" title=\"nothing was found to crop around, so the crop is a default part of the image\">missing</span>", f);
    if (v->grown) fputs("<span class=\"flag\" title=\"the crop was empty or too small and was enlarged\">grown</span>", f);
}

static void put_scores(FILE *f, const Value *v) {
    const Boxes *b = v->boxes;
    fputs("<div class=\"out\">", f);
    if (!b->n) fputs(v->kind == VAL_BOXES ? "<b>nothing found</b>" : "<b>none</b>", f);
    for (int i = 0; i < MIN(b->n, SCORES_TOLD); i++) {
        fprintf(f, "<span class=\"chip%s\"><i></i>", i || v->kind != VAL_BOXES ? "" : " first");
        if (b->classes) {
            html_put(f, b->classes[i].name.s, (size_t)b->classes[i].name.n);
            fprintf(f, " %.1f", b->classes[i].score);
        } else if (b->exact) fputs("a side of the image", f);
        else fprintf(f, "%.2f", (double)b->box[i].score);
        fputs("</span>", f);
    }
    if (b->n > SCORES_TOLD) fprintf(f, "<span class=\"dim small\">and %d more%s</span>", b->n - SCORES_TOLD, b->n > BOXES_DRAWN ? " (32 are drawn)" : "");
    fputs("</div>", f);
}

static void put_bars(FILE *f, const StepView *s) {
    fputs("<div class=\"bars\">", f);
    for (int i = 0; i < s->nprobs; i++) {
        const double pc = 100 * MIN(MAX((double)s->prob[i], 0), 1);
        fputs("<span>", f);
        put(f, s->answer[i]);
        fprintf(f, "</span><span class=\"track%s\"><i style=\"width:%.1f%%\"></i></span><span class=\"pc dim\">%.1f%%</span>", i ? "" : " best", pc, pc);
    }
    fputs("</div>", f);
}

/* EVAL: the values that its expression read. */
static void put_reads(FILE *f, const ProgramView *p, int i) {
    const Step *st = &p->prog->steps[i];
    fputs(" <span class=\"dim small\">", f);
    for (int k = 0; k < st->nwaits; k++) {
        const int w = st->waits[k];
        if (!p->step[w].value) continue;
        fputs(k ? ", " : "with ", f);
        put(f, p->prog->names[p->prog->steps[w].out]);
        fputs(" = ", f);
        put_value(f, p->step[w].value);
    }
    fputs("</span>", f);
}

static void put_outcome(FILE *f, const ProgramView *p, int i) {
    const Step *st = &p->prog->steps[i];
    const StepView *s = &p->step[i];
    if (!s->value) {
        if (p->failed_step == i) {
            fputs("<div class=\"why\">", f);
            put(f, p->error);
            fputs("</div>", f);
        } else {
            fputs("<div class=\"out dim small\">not reached</div>", f);
        }
        return;
    }
    if ((s->value->kind == VAL_BOXES || s->value->kind == VAL_OBJECTS) && st->kind->role == STEP_PLAIN) {
        put_scores(f, s->value);
        return;
    }
    const bool image = s->value->kind == VAL_IMAGE;
    fprintf(f, "<div class=\"out\">%s", image ? "<span class=\"dim small\">" : "<b>");
    if (s->asked && s->value->kind == VAL_STR) html_put(f, s->value->str.s, (size_t)s->value->str.n);
    else put_value(f, s->value);
    fputs(image ? "</span> " : "</b>", f);
    put_flags(f, s->value);
    if (st->kind->role == STEP_EVAL) put_reads(f, p, i);
    fputs("</div>", f);
    if (s->nprobs) put_bars(f, s);
}

static void put_step(Html *h, const ProgramView *p, int i) {
    const Step *st = &p->prog->steps[i];
    const bool failed = p->failed_step == i, done = p->step[i].value;
    const char *kind = !strcmp(st->kind->name, "LOC") ? " loc" : !strcmp(st->kind->name, "VQA") ? " vqa" : !strncmp(st->kind->name, "CROP", 4) ? " crop" : (st->kind->result & KINDS_ANY) == KIND(VAL_IMAGE) ? " edit" : st->module ? " ask" : "";
    fprintf(h->f, "<div class=\"step%s%s\"><div class=\"n\">%d</div><div><code class=\"code\">", kind, failed ? " bad" : done ? "" : " off", i + 1);
    put_code(h->f, p->prog->text + st->text, st->ntext);
    fputs("</code>", h->f);
    put_outcome(h->f, p, i);
    fputs("</div>", h->f);
    put_pictures(h, p, i);
    fputs("</div>\n", h->f);
}

/* A program that does not parse: its lines, the wrong one marked. */
static void put_source(FILE *f, const ProgramView *p) {
    fputs("<pre>", f);
    int line = 1;
    for (const char *s = p->source, *end = s + p->nsource; s < end; line++) {
        const char *nl = memchr(s, '\n', (size_t)(end - s));
        size_t n = (size_t)((nl ? nl : end) - s);
        fprintf(f, "<span%s><i>%d</i>", line == p->error_line ? " class=\"bad\"" : "", p->line + line - 1);
        html_put(f, s, n && s[n - 1] == '\r' ? n - 1 : n);
        fputs("</span>", f);
        s += n + 1;
    }
    fputs("</pre>", f);
}

static void put_verdict(FILE *f, const ProgramView *p, const char *class, const char *failed) {
    fprintf(f, "<span class=\"%s%s\">", class, p->result ? "" : " bad");
    put(f, p->result ? p->result : failed);
    fputs("</span>", f);
}

void html_program(Html *h, const ProgramView *p) {
    FILE *f = h->f;
    h->nprograms++;
    h->nfailed += !p->result;
    fprintf(f, "<article id=\"p%" PRId64 "\"><div class=\"top\"><div><h2>", h->nprograms);
    if (p->title) put(f, p->title);
    else fprintf(f, "Program %" PRId64, h->nprograms);
    fprintf(f, "</h2><span class=\"dim small\">");
    put(f, p->place);
    if (p->prog) fprintf(f, " · %d step%s", p->prog->nsteps, p->prog->nsteps == 1 ? "" : "s");
    fputs("</span></div>", f);
    put_verdict(f, p, "verdict", "failed");
    fputs("</div>\n", f);
    if (p->error && p->failed_step < 0) {
        fputs("<div class=\"say\">", f);
        put(f, p->error);
        fputs("</div>", f);
    }
    if (p->prog)
        for (int i = 0; i < p->prog->nsteps; i++) put_step(h, p, i);
    else put_source(f, p);
    fputs("</article>\n", f);

    fprintf(h->index_file, "<li><a href=\"#p%" PRId64 "\"><span class=\"q\">", h->nprograms);
    put(h->index_file, p->title ? p->title : p->place);
    fprintf(h->index_file, "</span><b%s>", p->result ? "" : " style=\"color:var(--red)\"");
    put(h->index_file, p->result ? p->result : "failed");
    fputs("</b></a></li>\n", h->index_file);
}

/* ---- the page ------------------------------------------------------------------------------------- */

bool html_open(Html *h, const char *path, const HtmlImage *image, int nimages, const char *const *note, int nnotes, Error *e) {
    CHECK(nimages <= HTML_IMAGES, "html: %d images", nimages);
    *h = (Html){.nimages = nimages};
    if (!(h->f = fopen(path, "we"))) return fail_as(e, FAIL_DISK, "%s: cannot write: %s", path, strerror(errno));
    h->path = xstrdup(path);
    h->index_file = open_memstream(&h->index, &h->index_size);
    if (!h->index_file) die(FAIL_MEMORY, "no memory stream for the index of %s", path);
    FILE *f = h->f;
    fputs("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
          "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">\n"
          "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><meta name=\"referrer\" content=\"no-referrer\">\n<title>Visual programs on ", f);
    for (int i = 0; i < nimages; i++) {
        if (i) fputs(", ", f);
        put(f, image[i].file);
    }
    fputs("</title>\n<style>\n", f);
    fputs(style, f);
    fputs("</style></head><body>\n", f);
    for (int i = 0; i < nimages; i++) {
        h->image[i] = image[i];
        embed(h, &image[i].view, (Rect){0, 0, image[i].view.w, image[i].view.h}, 'i', i, INPUT_SIDE, INPUT_BYTES, &h->scale[i]);
    }
    fputs("<header><h1>Visual programs, step by step</h1>\n", f);
    for (int i = 0; i < nnotes; i++) {
        fputs("<div class=\"dim small\">", f);
        put(f, note[i]);
        fputs("</div>\n", f);
    }
    fputs("<div class=\"inputs\">", f);
    for (int i = 0; i < nimages; i++) {
        fputs("<figure>", f);
        picture(h, (Source){'i', i}, (Rect){0, 0, image[i].view.w, image[i].view.h}, 2 * SHOWN_W, 2 * SHOWN_H, image[i].name);
        fputs("</svg><figcaption><code>", f);
        put(f, image[i].name);
        fputs("</code> ", f);
        put(f, image[i].file);
        fprintf(f, ", %d × %d</figcaption></figure>", image[i].view.w, image[i].view.h);
    }
    fputs("</div></header>\n", f);
    return true;
}

bool html_close(Html *h, Error *e) {
    if (!h->f) return true;
    fclose(h->index_file);
    if (h->nprograms > 1) { /* above the programs by its CSS order: only now is it known */
        fprintf(h->f, "<nav><details%s><summary>%" PRId64 " programs", h->nprograms <= 24 ? " open" : "", h->nprograms);
        if (h->nfailed) fprintf(h->f, ", %" PRId64 " failed", h->nfailed);
        if (*h->summary) {
            fputs(" <span class=\"dim small\" style=\"font-weight:400\">· ", h->f);
            put(h->f, h->summary);
            fputs("</span>", h->f);
        }
        fputs("</summary><ol>\n", h->f);
        fwrite(h->index, 1, h->index_size, h->f);
        fputs("</ol></details></nav>\n", h->f);
    }
    fputs("</body></html>\n", h->f);
    bool ok = !fflush(h->f) && !ferror(h->f);
    const int err = errno;
    ok = !fclose(h->f) && ok;
    if (!ok) fail_as(e, FAIL_DISK, "%s: cannot write the page: %s", h->path, strerror(err ? err : errno));
    else if (h->failed && e) {
        *e = h->why;
        fail_in(e, "%s", h->path);
        ok = false;
    }
    free(h->index);
    free(h->crop);
    free(h->made);
    free(h->path);
    *h = (Html){0};
    return ok;
}
