# bench.mk -- the benchmarks. Included by the Makefile, which links them into the command and has the rules for objects.
#
#   make bench         per-operation table and the loader
#   make ablation      what each part of the distillation is worth, on the demo's validation part (half an hour; after make demo)
#   make bench-step    a training step beside PyTorch: PYTHON=... with the packages of bench/requirements.txt

PYTHON ?= python3
STEP   ?=

# The commit that a report names: looked up at each make, written when it has changed.
.PHONY: commit
$(B)/commit.h: commit
	@mkdir -p $(B)
	@echo "#define COMMIT \"$$(git describe --always --dirty --abbrev=12 --exclude='*' 2>/dev/null)\"" >$@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@
$(B)/bench/report.o: $(B)/commit.h
$(B)/bench/report.o: CPPFLAGS += -include $(B)/commit.h

bench: $(B)/vpdistill
	$(B)/vpdistill bench kernels
	$(B)/vpdistill bench loader

bench-step: $(B)/vpdistill
	$(PYTHON) bench/step.py --bench $(B)/vpdistill $(STEP)

ablation: $(B)/vpdistill
	VP=$(B)/vpdistill bench/ablation.sh

.PHONY: bench bench-step ablation
