#!/bin/bash
# ptxcpu.sh -- runs what nvcc made of the kernels on a machine without a graphics card.
#
#   tests/ptxcpu.sh TOOL [test ...]      TOOL: the folder of ptxcpu, which executes PTX on the CPU under its own CUDA runtime
#
# Builds the CUDA binary and the kernels for the tool, then runs every test of the cuda device (or those named) three times: as
# it is; in random order with streams that work only when somebody waits; and, the kernels alone, with checked accesses, races and
# reads of memory that nobody wrote. Then two steps of the demo by the command itself. Whatever the tool reports is a failure.
# The last line is the sum of the tests' counts.
# Without the tool or nvcc it says so and all is well.
set -euo pipefail
cd "$(dirname "$0")/.."

tool=${1:-}
[ -n "$tool" ] || { echo "usage: tests/ptxcpu.sh TOOL [test ...]"; exit 2; }
shift
nvcc=${CUDA_HOME:-/usr/local/cuda}/bin/nvcc
[ -x "$tool/bin/ptxcpu-build" ] || { echo "ptxcpu is not in $tool: the compiled kernels are not run here"; exit 0; }
[ -x "$nvcc" ] || { echo "$nvcc is missing: the compiled kernels are not run here"; exit 0; }

out=build/ptxcpu
mkdir -p $out
[ -d $out/tool ] || cp -r "$tool" $out/tool # the tool builds inside its own folder, and that one is not ours
make -s -C $out/tool
make -j"$(nproc)" CUDA=1 build/cuda/test build/cuda/vpdistill

# kernels NAME.so, plain and checked, newer than all that they are made of
for cu in kernels/cuda/*.cu tests/emu/twins.cu; do
    name=$(basename "$cu" .cu)
    for kind in plain checked; do
        so=$out/$name-$kind.so
        [ "$so" -nt "$cu" ] && [ -z "$(find kernels kernels/cuda tests/emu -maxdepth 1 -name '*.*h' -newer "$so")" ] && continue
        echo "$so -arch=sm_80 -std=c++17 -O3 -lineinfo -I. -D_GNU_SOURCE $([ $kind = plain ] || echo --check) -o $so $cu"
    done
done | xargs -r -P "$(nproc)" -L 1 sh -c 'so=$1; shift; echo "  PTXCPU $so"; exec '$out/tool'/bin/ptxcpu-build "$@"' build

passed=0 failed=0 skipped=0 status=0
kernels() { # kind
    local list
    list=$(printf '%s:' $out/*-"$1".so)
    echo "${list%:}"
}
run() { # what kind VARIABLE=value...: runs $program
    local what=$1 kind=$2 log=$out/$1.log count
    shift 2
    echo "== ptxcpu: $what"
    env PTXCPU_EXITCODE=86 OMP_WAIT_POLICY=PASSIVE VPDISTILL=build/cuda/vpdistill "$@" $out/tool/bin/ptxcpu-run "$(kernels "$kind")" "${program[@]}" 2>&1 |
        tee "$log" | { grep -Ev '^ok' || true; } || status=1
    count=$(grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$log" | tail -n 1 || true)
    if [ -z "$count" ]; then
        echo "ptxcpu: $what did not run to its end: $log"
        failed=$((failed + 1)) status=1
        return
    fi
    read -r p _ f _ s _ <<<"$count"
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
}

[ $# -gt 0 ] && named=("$@") || named=("[cuda]" _on_cuda)
program=(build/cuda/test "${named[@]}")
run plain plain A=0
run lazy plain PTXCPU_SEED=1 PTXCPU_LAZY=1
[ $# -gt 0 ] || program=(build/cuda/test 'kernels/&[cuda]' _on_cuda) # whole models: too slow when every access is looked up
run checked checked PTXCPU_SEED=2 PTXCPU_RACE=1 PTXCPU_INIT=1

if [ $# = 0 ]; then # the command itself, two steps of the demo
    echo "== ptxcpu: vpdistill distill run.device=cuda"
    log=$out/distill.log models=configs/models/demo
    if [ -f $out/scenes/dataset.json ] || build/cuda/vpdistill scenes scenes.dir=$out/scenes scenes.train=8 scenes.val=2 scenes.test=4 >"$log" 2>&1 &&
        env PTXCPU_EXITCODE=86 $out/tool/bin/ptxcpu-run "$(kernels plain)" build/cuda/vpdistill distill \
            data.dir=$out/scenes model.vqa=$models-vqa model.loc=$models-loc model.teacher=$models-teacher model.loc_threshold=0.4 \
            distill.steps=2 distill.programs=4 run.log_every=1 eval.limit=4 train.resume=false run.out=$out/run run.device=cuda >"$log" 2>&1; then
        passed=$((passed + 1))
        grep '^step' "$log" || true
    else
        failed=$((failed + 1)) status=1
        tail -n 20 "$log"
    fi
fi

[ $status = 0 ] || failed=$((failed ? failed : 1))
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
