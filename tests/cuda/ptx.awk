# ptx.awk -- the table of `make ptx`: from NAME.ptx and what ptxas -v said of it (NAME.log), pair after pair; before them the emulated
# card's count of what each kernel did (emu.counts, tests/emu/test_traffic.c) and the names of its addresses (emu.names).
#
# What nvcc made:
#   occup    theoretical: warps that fit beside each other over the most a multiprocessor takes (64), for the registers (given in 8
#            per thread, 256 per warp), shared memory (1 KB per block is the system's) and the block size, these two as launched
#            under emulation, else of __launch_bounds__ and static (*: dynamic shared memory comes on top)
#   hot 16B  accesses to global memory, loads, stores and cp.async, that move 16 bytes, of all: in the outermost loop with most
#            of them, or in the whole kernel when none has any. "whole": the same in its whole text, with tails and unaligned ways
#   atom     atomic accesses to global memory
# What it did, under emulation at the sizes of the test (- : it was not launched there, as those for unaligned rows):
#   moved    bytes over the least that its op must move; *: memory does not bind it (kernels/cuda/README.md)
#   16B      share of the bytes asked for that went by 16-byte accesses
#   sectors  32-byte sectors of its warps' requests over the least
#   banks    wavefronts of shared memory over transactions: 1 is no conflict
# Exit status 1 when a kernel spills, has a stack, or adds to global memory atomically.

function ceil_to(x, unit) { return int((x + unit - 1) / unit) * unit }
function min(a, b) { return a < b ? a : b }

function worst(table, key, value) { if (!(key in table) || value + 0 > table[key] + 0) table[key] = value }

# ---- what the emulated card counted
FILENAME ~ /emu\.names$/ {
    name_at[$1] = $3
    next
}
FILENAME ~ /emu\.counts$/ {
    kernel = name_at[$1]
    sub(/^_ZL/, "_Z", kernel)
    worst(emu_threads, kernel, $4)
    worst(emu_shared, kernel, $5)
    worst(moved, kernel, $6)
    if (!(kernel in least_wide) || $7 < least_wide[kernel]) least_wide[kernel] = $7
    if ($9) worst(sector_ratio, kernel, $8 / $9)
    if ($10) worst(bank_ratio, kernel, $11 / $10)
    next
}

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

# Of the accesses between two lines: counts[1] all, counts[2] of 16 bytes.
function count_between(from, to, counts,   i) {
    counts[1] = counts[2] = 0
    for (i = 1; i <= lines; i++)
        if (line[i] >= from && line[i] <= to) { counts[1]++; counts[2] += is_wide[i] }
}
function kernel_ends(   i, j, outer, counts) {
    key = arch SUBSEP kernel
    count_between(0, FNR, counts)
    hot_all[key] = accesses[key] = counts[1]
    hot_wide[key] = wide[key] = counts[2]
    most = 0
    for (i = 1; i <= loops; i++) {
        outer = 1 # no loop is round it
        for (j = 1; j <= loops; j++)
            if (j != i && loop_from[j] <= loop_from[i] && loop_to[j] >= loop_to[i] && (loop_to[j] > loop_to[i] || j < i)) outer = 0
        if (!outer) continue
        count_between(loop_from[i], loop_to[i], counts)
        if (counts[2] > most) { most = hot_wide[key] = counts[2]; hot_all[key] = counts[1] }
    }
    delete label
    lines = loops = 0
    kernel = ""
}
is_ptx && /\.entry/ {
    kernel = $0
    sub(/.*\.entry +/, "", kernel)
    sub(/\($/, "", kernel)
}
is_ptx && /^\.(visible|weak)? *\.func/ { kernel = "" }
is_ptx && kernel != "" && /^\.maxntid/ { gsub(/,/, " "); threads[arch, kernel] = $2 * ($3 ? $3 : 1) * ($4 ? $4 : 1) }
is_ptx && kernel != "" && /dynamic_shared_/ { dynamic[arch, kernel] = 1 }
is_ptx && kernel != "" && /^\$/ { sub(/:.*/, ""); label[$0] = FNR }
is_ptx && kernel != "" && /[ \t]bra/ {
    to = $NF
    sub(/;.*/, "", to)
    if (to in label) { loop_from[++loops] = label[to]; loop_to[loops] = FNR }
}
is_ptx && kernel != "" && /(ld|st)\.global/ { line[++lines] = FNR; is_wide[lines] = /\.(v4\.[a-z]32|v2\.[a-z]64)/ }
is_ptx && kernel != "" && /cp\.async\.c[ag]/ { line[++lines] = FNR; is_wide[lines] = /, 16/ }
is_ptx && kernel != "" && /^}/ { kernel_ends() }
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
    emu = kernel
    gsub(/13__nv_bfloat16/, "4bf16", emu) # its type's name there
    block = emu in moved ? emu_threads[emu] : key in threads ? threads[key] : 1024
    if (emu in moved) smem = emu_shared[emu]
    warps = ceil_to(block, 32) / 32
    all_smem = arch >= 90 ? 228 : arch == 80 ? 164 : 100
    fit = min(min(32, int(64 / warps)), int(65536 / (warps * ceil_to(ceil_to(regs, 8) * 32, 256))))
    fit = min(fit, int(all_smem * 1024 / (smem + 1024)))
    printf "%-14s sm_%s %4d %4d %6d%s %5d %5d %4d%% %7s %7s %4d %7s %5s %7s %5s  %s\n", file, arch, block, regs, smem, \
        (key in dynamic && !(emu in moved) ? "*" : " "), spill, stack, 100 * fit * warps / 64, hot_wide[key] "/" hot_all[key], \
        wide[key] "/" accesses[key], atomics[key], (emu in moved ? moved[emu] : "-"), \
        (emu in moved ? sprintf("%.0f%%", 100 * least_wide[emu]) : "-"), (emu in sector_ratio ? sprintf("%.3f", sector_ratio[emu]) : "-"), \
        (emu in bank_ratio ? sprintf("%.2f", bank_ratio[emu]) : "-"), kernel
    kernels++
    if (spill || stack) bad = bad "\n" file ": " kernel " on sm_" arch ": " spill " bytes spilled, " stack " bytes of stack"
    if (atomics[key]) bad = bad "\n" file ": " kernel ": atomic access to global memory"
}
BEGIN {
    printf "%-14s %-5s %4s %4s %7s %5s %5s %5s %7s %7s %4s %7s %5s %7s %5s  %s\n", "file", "arch", "thr", "regs", "shared", "spill", "stack", \
        "occup", "hot 16B", "whole", "atom", "moved", "16B", "sectors", "banks", "kernel"
}
END {
    printf "%d kernels\n", kernels
    if (bad) { print substr(bad, 2); exit 1 }
}
