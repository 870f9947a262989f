# cuda.mk -- what can be known of the CUDA kernels without a card. Included by the Makefile, which has NVCC and CUDA_ARCHS.
#
#   make ptx           a table: registers, shared memory, spills, stack, occupancy, width of accesses, atomics of each kernel on each
#                      architecture; bytes moved over the least, sectors, bank conflicts of each under emulation. What the
#                      columns are: tests/cuda/ptx.awk. Fails on a spill, a stack or an atomic access. Needs nvcc

PTX_NAMES := $(patsubst kernels/cuda/%.cu,%,$(wildcard kernels/cuda/*.cu))
PTX_LOGS  := $(foreach a,$(CUDA_ARCHS),$(foreach n,$(PTX_NAMES),build/ptx/sm_$(a)/$(n).log))

define ptx_rule
build/ptx/sm_$(1)/%.ptx: kernels/cuda/%.cu
	@mkdir -p $$(@D)
	@echo "  PTX sm_$(1) $$<"
	@$$(NVCC) -I. -D_GNU_SOURCE -std=c++17 -O3 -arch=sm_$(1) -MMD -MP -ptx $$< -o $$@
build/ptx/sm_$(1)/%.log: build/ptx/sm_$(1)/%.ptx
	@$$(CUDA_HOME)/bin/ptxas -v -O3 -arch=sm_$(1) $$< -o build/ptx/sm_$(1)/$$*.cubin >$$@ 2>&1 || { cat $$@; rm $$@; exit 1; }
endef
$(foreach a,$(CUDA_ARCHS),$(eval $(call ptx_rule,$(a))))

-include $(wildcard build/ptx/*/*.d)

build/ptx/emu.counts: $(B)/test
	@mkdir -p $(@D)
	@rm -f $@
	@TRAFFIC_KERNELS=$@ $< traffic >$@.log || { cat $@.log; rm -f $@; exit 1; }
	@nm $< >build/ptx/emu.names

ptx: $(PTX_LOGS:.log=.ptx) $(PTX_LOGS) build/ptx/emu.counts
	@awk -f tests/cuda/ptx.awk build/ptx/emu.names build/ptx/emu.counts $(foreach l,$(PTX_LOGS),$(l:.log=.ptx) $(l)) >build/ptx/table; status=$$?; \
	c++filt -p <build/ptx/table | sed 's/ void / /; s/__nv_bfloat16/bf16/g'; exit $$status

.PHONY: ptx
