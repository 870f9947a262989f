# ptx.awk -- the table of `make ptx`, from NAME.ptx and what ptxas -v said of it (NAME.log), pair after pair.
#
# Occupancy is theoretical: warps that fit beside each other over the most a multiprocessor takes (64), for the block size of
# __launch_bounds__, the registers (given in 8 per thread, 256 per warp) and the static shared memory (1 KB per block is the
# system's). A * says that dynamic shared memory, which only the launch knows, comes on top. "16 B" are the accesses to global
# memory, loads, stores and cp.async, that move 16 bytes, of all that the text of the kernel has.
# Exit status 1 when a kernel spills, has a stack, or adds to global memory atomically.

function ceil_to(x, unit) { return int((x + unit - 1) / unit) * unit }
function min(a, b) { return a < b ? a : b }

FNR == 1 {
    kernel = ""
    is_ptx = FILENAME ~ /\.ptx$/
    file = FILENAME
    sub(/.*\//, "", file)
    sub(/\.(ptx|log)$/, ".cu", file)
    arch = FILENAME
    sub(/.*sm_/, "", arch)
    sub(/[^0-9].*/, "", arch)
}

# ---- the kernel's text
is_ptx && /\.entry/ {
    kernel = $0
    sub(/.*\.entry +/, "", kernel)
    sub(/\($/, "", kernel)
}
is_ptx && /^\.(visible|weak)? *\.func/ { kernel = "" }
is_ptx && kernel != "" && /^\.maxntid/ { gsub(/,/, " "); threads[arch, kernel] = $2 * ($3 ? $3 : 1) * ($4 ? $4 : 1) }
is_ptx && kernel != "" && /dynamic_shared_/ { dynamic[arch, kernel] = 1 }
is_ptx && kernel != "" && /(ld|st)\.global/ { accesses[arch, kernel]++ }
is_ptx && kernel != "" && /(ld|st)\.global.*\.(v4\.[a-z]32|v2\.[a-z]64)/ { wide[arch, kernel]++ }
is_ptx && kernel != "" && /cp\.async\.c[ag]/ { accesses[arch, kernel]++; wide[arch, kernel] += /, 16/ }
is_ptx && kernel != "" && /[ \t](atom|red)\.(global|relaxed|add|cas|exch)/ { atomics[arch, kernel]++ }

# ---- what ptxas says
!is_ptx && /Compiling entry function/ { split($0, quoted, "'"); kernel = quoted[2] }
!is_ptx && /bytes stack frame/ {
    for (i = 1; i < NF; i++) {
        if ($(i + 2) == "stack") stack = $i
        if ($(i + 2) == "spill" && $(i + 3) ~ /stores/) spill = $i
    }
}
!is_ptx && /Used [0-9]+ registers/ {
    smem = 0
    for (i = 1; i < NF; i++) {
        if ($(i + 1) ~ /^registers/) regs = $i
        if ($(i + 1) == "bytes" && $(i + 2) ~ /^smem/) smem = $i
    }
    key = arch SUBSEP kernel
    block = key in threads ? threads[key] : 1024
    warps = ceil_to(block, 32) / 32
    all_smem = arch >= 90 ? 228 : arch == 80 ? 164 : 100
    fit = min(min(32, int(64 / warps)), int(65536 / (warps * ceil_to(ceil_to(regs, 8) * 32, 256))))
    fit = min(fit, int(all_smem * 1024 / (smem + 1024)))
    printf "%-15s sm_%s %7d %4d %6d%s %5d %5d %4d%% %3d of %-3d %7d  %s\n", file, arch, block, regs, smem, \
        (key in dynamic ? "*" : " "), spill, stack, 100 * fit * warps / 64, wide[key], accesses[key], atomics[key], kernel
    kernels++
    if (spill || stack) bad = bad "\n" file ": " kernel " on sm_" arch ": " spill " bytes spilled, " stack " bytes of stack"
    if (atomics[key]) bad = bad "\n" file ": " kernel ": atomic access to global memory"
}
BEGIN {
    printf "%-15s %-5s %7s %4s %7s %5s %5s %5s %-10s %7s  %s\n", "file", "arch", "threads", "regs", "shared", "spill", "stack", "occup", \
        "     16 B", "atomics", "kernel"
}
END {
    printf "%d kernels\n", kernels
    if (bad) { print substr(bad, 2); exit 1 }
}
