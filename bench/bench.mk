# bench.mk -- the benchmarks. Included by the Makefile, which has ENGINE, LIB, BENCH and the rules for objects.
#
#   make bench         per-operation table and the loader
#   make ablation      what each part of the distillation is worth, on the demo's validation part (half an hour; after make demo)
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

ablation: $(B)/vpdistill
	VP=$(B)/vpdistill bench/ablation.sh

.PHONY: bench bench-step ablation
