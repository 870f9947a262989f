# parity.mk -- beside the references, with Python: PYTHON=... with the packages of tests/parity/requirements.txt. Included by the
# Makefile.
#
#   make parity            models of the published sizes with random weights beside transformers; PARITY="vilt-vqa owlvit-b32" chooses
#   make parity-chain      folders from transformers are trained here, then there, then read again; CHAIN="vilt-small" chooses
#   make parity-programs   all example programs on photographs, with models of the published sizes (programs.py)
#   make parity-distill    two steps of the main job with models of the published sizes (distill.py); DISTILL=... chooses
#   make parity-tokens     the program of tests/parity/compare_tokens.py
#   make parity-images     the program of tests/parity/compare_images.py

PARITY ?=
CHAIN  ?=
DISTILL ?=

$(B)/parity: $(call obj,$(LIB) tests/parity/parity.c tests/modules/model_case.c) $(KERNELS)
	@echo "  LD $@"
	@$(CC) $(CFLAGS) $^ $(LDLIBS) -o $@

$(B)/parity-%: $(call obj,$(LIB)) $(B)/tests/parity/%.o $(KERNELS)
	@echo "  LD $@"
	@$(CC) $(CFLAGS) $^ $(LDLIBS) -o $@

parity: $(B)/parity
	$(PYTHON) tests/parity/parity.py --engine $(B)/parity $(PARITY)

parity-chain: $(B)/parity $(B)/vpdistill
	$(PYTHON) tests/parity/chain.py --engine $(B)/vpdistill --parity $(B)/parity $(CHAIN)

parity-tokens parity-images: %: $(B)/%

parity-programs: $(B)/vpdistill
	$(PYTHON) tests/parity/programs.py --engine $(B)/vpdistill

parity-distill: $(B)/vpdistill
	$(PYTHON) tests/parity/distill.py --engine $(B)/vpdistill $(DISTILL)

.PHONY: parity parity-chain parity-programs parity-distill parity-tokens parity-images
