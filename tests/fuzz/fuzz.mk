# fuzz.mk -- `make fuzz`: every tests/fuzz/fuzz_*.c for FUZZ_SECONDS each, with the address and undefined-behaviour sanitizers.
# `make fuzz FUZZ=json FUZZ_SECONDS=60` runs one. What is found lies in build/fuzz/NAME.crash-* (or .timeout-*, .oom-*); run build/fuzz/fuzz_NAME FILE to
# see it again. The corpus in build/fuzz/corpus/NAME grows from run to run; it begins with tests/fuzz/seeds/NAME where that is there. Needs clang (and Debian's libclang-rt-14-dev, which
# clang brings).

FUZZ_SECONDS ?= 600
FUZZ         ?= $(patsubst tests/fuzz/fuzz_%.c,%,$(wildcard tests/fuzz/fuzz_*.c))
CLANG        ?= clang
F            := build/fuzz
FUZZ_SAN     := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
# gcc knows flags of -W that clang does not, and clang finds other things to warn of; gcc's build is where warnings are errors.
FUZZ_CFLAGS  := -std=c17 -g -O1 $(FUZZ_SAN) -march=native -pthread -w

fobj = $(patsubst %.c,$(F)/%.o,$(1))

# No OpenMP here: clang's runtime is another package. The two places that call it are left out; no reader needs them.
FUZZ_LIB := $(filter-out kernels/% data/scenes_write.c,$(LIB)) kernels/cpu/image.c

$(F)/%.o: %.c
	@mkdir -p $(@D)
	@echo "  CC $< (clang)"
	@$(CLANG) $(CPPFLAGS) $(FUZZ_CFLAGS) -fsanitize=fuzzer-no-link -MMD -MP -c $< -o $@

$(F)/libvpdistill.a: $(call fobj,$(FUZZ_LIB))
	@rm -f $@
	@ar rcs $@ $^

$(F)/fuzz_%: $(F)/tests/fuzz/fuzz_%.o $(F)/libvpdistill.a
	@echo "  LD $@"
	@$(CLANG) $(FUZZ_CFLAGS) -fsanitize=fuzzer $^ $(LDLIBS) -o $@

.PRECIOUS: $(F)/fuzz_% $(F)/%.o

fuzz: fuzz-needs $(addprefix $(F)/fuzz_,$(FUZZ))
	@for name in $(FUZZ); do \
	    mkdir -p $(F)/corpus/$$name; \
	    echo "== $$name, $(FUZZ_SECONDS) s"; \
	    UBSAN_OPTIONS=print_stacktrace=1 $(F)/fuzz_$$name -max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=2560 -timeout=60 -max_len=16384 \
	        -print_final_stats=1 -artifact_prefix=$(F)/$$name. $(F)/corpus/$$name $$(ls -d tests/fuzz/seeds/$$name 2>/dev/null) >$(F)/$$name.log 2>&1 || \
	        { tail -n 40 $(F)/$$name.log; echo "$$name: FAILED, see $(F)/$$name.log"; exit 1; }; \
	    grep -E 'cov:|Done|stat::number_of_executed_units' $(F)/$$name.log | tail -n 2; \
	done; echo "fuzz: $(words $(FUZZ)) targets clean"

-include $(wildcard $(F)/*/*.d $(F)/*/*/*.d)
fuzz-needs:
	@command -v $(CLANG) >/dev/null || { echo "make fuzz needs clang with its runtime: sudo apt-get install clang libclang-rt-14-dev"; exit 1; }

.PHONY: fuzz fuzz-needs
