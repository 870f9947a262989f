# bench.mk -- the benchmarks. Included by the Makefile, which links them into the command and has the rules for objects.
#
#   make bench         per-operation table and the loader
#   make ablation      what each part of the distillation is worth, on the demo's validation part (half an hour; after make demo)
#
# Beside others, in turns: PYTHON=... with the packages of bench/requirements.txt. STEP="--size b32 --rounds 5" and the like choose.
#   make bench-step    a training step beside PyTorch, eager and compiled
#   make bench-infer   outputs of one image beside ONNX Runtime and PyTorch (INFER)
#   make bench-adamw   the optimizer beside PyTorch's (ADAMW)
#   make bench-jpeg    JPEG files to tensors beside Pillow and transformers' processor (JPEG)
#   make bench-start   from start to first answer beside transformers (START)
#   make bench-ranks   two ranks beside one, and PyTorch's (RANKS)

PYTHON ?= python3

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

bench-step:  OPTIONS = $(STEP)
bench-infer: OPTIONS = $(INFER)
bench-adamw: OPTIONS = $(ADAMW)
bench-jpeg:  OPTIONS = $(JPEG)
bench-start: OPTIONS = $(START)
bench-ranks: OPTIONS = $(RANKS)
bench-step bench-infer bench-adamw bench-jpeg bench-start bench-ranks: bench-%: $(B)/vpdistill
	$(PYTHON) bench/$*.py --bench $< $(OPTIONS)

ablation: $(B)/vpdistill
	VP=$(B)/vpdistill bench/ablation.sh

.PHONY: bench bench-step bench-infer bench-adamw bench-jpeg bench-start bench-ranks ablation
