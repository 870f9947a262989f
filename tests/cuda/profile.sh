#!/bin/bash
# profile.sh -- a second witness of what the kernels move and collide over: what nvcc made of them, profiled without a card.
#
#   tests/cuda/profile.sh TOOL [op ...]      TOOL: the folder of ptxcpu, which executes PTX on the CPU and counts
#
# Runs each op of tests/emu/test_traffic.c (or those named) once, in f32 and in bf16, and prints what profile.py makes of it beside the
# emulated card's count. Without the tool or nvcc it says so and all is well.
set -euo pipefail
cd "$(dirname "$0")/../.."

tool=${1:-}
[ -n "$tool" ] || { echo "usage: tests/cuda/profile.sh TOOL [op ...]"; exit 2; }
shift
nvcc=${CUDA_HOME:-/usr/local/cuda}/bin/nvcc
[ -x "$tool/bin/ptxcpu-build" ] || { echo "ptxcpu is not in $tool: no profile"; exit 0; }
[ -x "$nvcc" ] || { echo "$nvcc is missing: no profile"; exit 0; }

out=build/profile
mkdir -p $out
[ -d $out/tool ] || cp -r "$tool" $out/tool # the tool builds inside its own folder, and that one is not ours
make -s -C $out/tool
make -j"$(nproc)" CUDA=1 build/cuda/test >/dev/null
for cu in kernels/cuda/*.cu; do
    so=$out/$(basename "$cu" .cu).so
    [ "$so" -nt "$cu" ] && [ -z "$(find kernels kernels/cuda -maxdepth 1 -name '*.*h' -newer "$so")" ] && continue
    echo "-arch=sm_90 -std=c++17 -O3 -lineinfo -I. -D_GNU_SOURCE --profile -o $so $cu"
done | xargs -r -P "$(nproc)" -L 1 $out/tool/bin/ptxcpu-build

list=$(printf '%s:' $out/*.so)
rm -f $out/*.json $out/emu.counts
TRAFFIC_OP=list build/cuda/test traffic_on_cuda | grep '^op ' >$out/ops
TRAFFIC_KERNELS=$out/emu.counts build/cuda/test '[emu]&traffic' traffic >/dev/null || true
while read -r _ name type least mark; do
    [ $# = 0 ] || [[ " $* " == *" $name "* ]] || continue
    env TRAFFIC_OP="$name $type" $out/tool/bin/ptxcpu-run --profile="$out/$name-$type.json" "${list%:}" build/cuda/test traffic_on_cuda \
        >$out/log 2>&1 || { cat $out/log; exit 1; }
    echo "$name $type $least $mark"
done <$out/ops | python3 tests/cuda/profile.py $out
