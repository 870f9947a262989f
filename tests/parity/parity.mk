# parity.mk -- programs that tests/parity/*.py run beside the reference. Included by the Makefile.

$(B)/parity-%: $(call obj,$(LIB)) $(B)/tests/parity/%.o $(KERNELS)
	@echo "  LD $@"
	@$(CC) $(CFLAGS) $^ $(LDLIBS) -o $@

parity-tokens parity-images: %: $(B)/%

.PHONY: parity-tokens parity-images
