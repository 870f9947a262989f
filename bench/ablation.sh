#!/bin/bash
# ablation.sh -- what each filter and each idea of the distillation is worth: one run per row and seed, on the demo's validation
# part, where choices are made. `make ablation` (after `make demo`, which draws the dataset). STEPS, SEEDS, LIMIT (questions), OUT,
# DEVICE and JOBS (runs at once) may be set in the environment. A row that is there already is not run again.
#
# Columns, means over the seeds: accuracy of the distilled programs; how many of their VQA steps are right, and LOC's F1 at IoU
# 0.5, against the scene graph on the same rectangles (vpdistill eval eval.blame=true).
set -euo pipefail
VP=${VP:-build/cpu/vpdistill} STEPS=${STEPS:-400} SEEDS=${SEEDS:-1} LIMIT=${LIMIT:-1600} OUT=${OUT:-build/ablation}
DEVICE=${DEVICE:-cpu} JOBS=${JOBS:-1}
rows=(
    "all of it|"
    "without the filter: the program executes|distill.filter_executes=false"
    "without the filter: the teacher is confident|distill.filter_confident=false"
    "without the filter: labels give the answer|distill.filter_replay=false"
    "without any filter|distill.filter_executes=false distill.filter_confident=false distill.filter_replay=false"
    "the task's answer is no evidence|distill.use_answer=false"
    "boxes verified by \"is there a ...?\" alone|distill.verify=exists"
    "every lesson learnt once|distill.reuse=0"
    "no further nouns|distill.loc_others=0"
    "no box coordinates|distill.loc_l1=0 distill.loc_giou=0"
    "unasked patches learn nothing|distill.loc_unasked=0"
    "programs run on the student's answers|distill.steer=student"
)
folder() { echo "$OUT/$2-$(echo "${1#*|}" | tr ' =.' '___')"; }
run_one() { # row seed
    local to options
    to=$(folder "$1" "$2")
    read -ra options <<<"${1#*|}"
    [ -f "$to/done" ] && return
    mkdir -p "$to"
    "$VP" distill configs/demo.yaml run.device="$DEVICE" run.seed="$2" run.out="$to" distill.steps="$STEPS" train.save_every=0 \
        eval.split=val eval.limit=1 "${options[@]}" >"$to/log" 2>&1
    "$VP" eval run.device="$DEVICE" data.dir=build/demo/hard model.vqa="$to/vqa" model.loc="$to/loc" model.loc_threshold=0.4 \
        eval.split=val eval.limit="$LIMIT" eval.blame=true >"$to/blame" 2>&1
    touch "$to/done"
}
mean() { # row, first word of the line, column
    for seed in $SEEDS; do awk -v w="$2" -v c="$3" '$1 == w {print $c; exit}' "$(folder "$1" "$seed")/blame"; done |
        awk '{s += $1} END {printf "%.1f%%", s / NR}'
}
mkdir -p "$OUT"
for seed in $SEEDS; do
    for row in "${rows[@]}"; do
        while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do wait -n; done
        run_one "$row" "$seed" &
    done
done
wait
printf '%-46s %9s %9s %8s\n' "$STEPS steps, seeds $SEEDS, $DEVICE" programs "VQA steps" "LOC F1"
for row in "${rows[@]}"; do
    printf '%-46s %9s %9s %8s\n' "${row%%|*}" "$(mean "$row" all 3)" "$(mean "$row" VQA 3)" "$(mean "$row" LOC 3)"
done
