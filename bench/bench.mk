# bench.mk -- the benchmarks. Included by the Makefile, which has ENGINE, LIB, BENCH and the rules for objects.
#
#   make bench         per-operation table and the loader
#   make bench-step    a training step beside PyTorch: PYTHON=... with the packages of bench/requirements.txt

PYTHON ?= python3
STEP   ?=

$(B)/vpbench: $(call obj,$(LIB) $(BENCH) tests/engine/count.c) $(KERNELS)
	@echo "  LD $@"
	@$(CC) $(CFLAGS) $^ $(LDLIBS) -o $@

bench: $(B)/vpbench
	$(B)/vpbench kernels
	$(B)/vpbench loader

bench-step: $(B)/vpbench
	$(PYTHON) bench/step.py --bench $(B)/vpbench $(STEP)

.PHONY: bench bench-step
