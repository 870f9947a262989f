#!/bin/bash
# ablation.sh -- what each filter and each idea of the distillation is worth: one short run per row, on the demo's validation
# part, where choices are made. `make ablation` (after `make demo`, which draws the dataset); STEPS, LIMIT and OUT may be set.
#
# Columns: accuracy of the distilled programs; how many of their VQA steps are right and LOC's F1 at IoU 0.5, against the scene
# graph on the same rectangles (vpdistill eval eval.blame=true).
set -euo pipefail
VP=${VP:-build/cpu/vpdistill} STEPS=${STEPS:-100} LIMIT=${LIMIT:-1600} OUT=${OUT:-build/ablation}
mkdir -p "$OUT"
printf '%-44s %9s %9s %8s\n' "$STEPS steps, $LIMIT validation questions" programs "VQA steps" "LOC F1"
row() {
    local name=$1 run; shift
    run="$OUT/$(echo "$*" | tr ' =.' '_--' | cut -c1-80)"
    if [ ! -f "$run/done" ]; then
        mkdir -p "$run"
        "$VP" distill configs/demo.yaml run.out="$run" distill.steps="$STEPS" train.save_every=0 eval.split=val eval.limit=1 "$@" >"$run/log" 2>&1
        "$VP" eval data.dir=build/demo/hard model.vqa="$run/vqa" model.loc="$run/loc" model.loc_threshold=0.4 eval.split=val \
            eval.limit="$LIMIT" eval.blame=true >"$run/blame" 2>&1
        touch "$run/done"
    fi
    printf '%-44s %9s %9s %8s\n' "$name" "$(awk '$1 == "all" {print $3; exit}' "$run/blame")" "$(awk '$1 == "VQA" {print $3; exit}' "$run/blame")" \
        "$(awk '$1 == "LOC" {print $3; exit}' "$run/blame")"
}
row "all of it"
row "without the filter: program executes"      distill.filter_executes=false
row "without the filter: teacher is confident"  distill.filter_confident=false
row "without the filter: labels give the answer" distill.filter_replay=false
row "without any filter"                         distill.filter_executes=false distill.filter_confident=false distill.filter_replay=false
row "the task's answer is no evidence"           distill.use_answer=false
row "verified by \"is there a ...?\" alone"      distill.verify=exists
row "every lesson learnt once"                   distill.reuse=0
row "no further nouns"                           distill.loc_others=0
row "no box coordinates"                         distill.loc_l1=0 distill.loc_giou=0
row "unasked patches learn nothing"              distill.loc_unasked=0
