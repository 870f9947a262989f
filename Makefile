# vpdistill. `make` builds build/cpu/vpdistill; `make demo` runs the main job; `make test` runs the tests.
# CUDA=1, MPI=1, DEBUG=1 and SAN=1 choose build directories of their own, so nothing ever needs a clean.

CUDA  ?= 0        # 1: also build the device for NVIDIA's graphics cards, into build/cuda (needs nvcc, cuBLASLt, NCCL, cuDNN's headers)
SAN   ?= 0        # 1: address and undefined-behaviour sanitizers
DEBUG ?= 0        # 1: -O0 -g
MPI   ?= 0        # 1: ranks that mpirun starts talk over MPI; without, over TCP
PLAIN := build/$(if $(filter 1,$(CUDA)),cuda,cpu)$(if $(filter 1,$(SAN)),-san)$(if $(filter 1,$(DEBUG)),-debug)
B     := $(PLAIN)$(if $(filter 1,$(MPI)),-mpi)

CUDA_HOME  ?= /usr/local/cuda
CUDA_ARCHS ?= 80 90   # machine code for these compute capabilities, PTX for the last: newer cards compile that when they start

CC       ?= gcc
WARN     := -Wall -Wextra -Werror -Wno-format-truncation
comma    := ,
SANFLAGS := -O1 -fsanitize=address$(comma)undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -Wno-error=maybe-uninitialized
OPT      := $(if $(filter 1,$(SAN)),$(SANFLAGS),$(if $(filter 1,$(DEBUG)),-O0,-O3))
CPPFLAGS := -I. -D_GNU_SOURCE -isystem /usr/include/freetype2
CFLAGS   := -std=c17 -g $(OPT) -march=native -fno-math-errno -fopenmp -pthread $(WARN)
EMUFLAGS := -std=c++17 -g $(if $(filter 1,$(SAN)),$(SANFLAGS),-O2) -march=native -ffp-contract=off -fno-math-errno -pthread $(WARN) -Wno-unknown-pragmas
# Every load and store of a kernel calls tests/emu/access.cpp, as it is written: none merged.
EMUSEES  := -fno-threadsafe-statics -fno-tree-vectorize -fno-tree-slp-vectorize -fno-store-merging $(if $(filter 1,$(SAN)),,-fsanitize=thread -fsanitize=alignment -fno-sanitize-recover=alignment)
LDLIBS   := -ldnnl -ljpeg -lpng -lfreetype -ljansson -lcyaml -lutf8proc -lm

ifeq ($(filter 1,$(MPI)),1)
ifeq ($(shell command -v mpicc),)
$(error MPI=1: there is no mpicc (mpi.h): apt-get install libopenmpi-dev openmpi-bin)
endif
SEES_MPI := engine/comm.c engine/comm_mpi.c tests/engine/test_mpi.c# what MPI=1 compiles otherwise, or at all; the rest is shared
LDLIBS   += $(shell mpicc --showme:link)
endif

ENGINE := $(filter-out $(if $(filter 1,$(MPI)),,engine/comm_mpi.c) $(if $(filter 1,$(CUDA)),,engine/comm_nccl.c),$(wildcard kernels/cpu/*.c engine/*.c data/*.c modules/*.c)) $(if $(filter 1,$(CUDA)),$(wildcard kernels/cuda/*.c),kernels/nocuda.c)
VERBS  := $(wildcard engine/verbs/*.c)
TESTS  := $(filter-out $(if $(filter 1,$(MPI)),,tests/engine/test_mpi.c),$(wildcard tests/*.c tests/kernels/*.c tests/emu/*.c tests/engine/*.c tests/data/*.c tests/modules/*.c)) tests/cudnn/numbers.c
EMU    := $(wildcard kernels/cuda/*.cu tests/emu/*.cu tests/emu/faults/*.cu tests/emu/*.cpp)   # CUDA kernels, compiled for the host
BENCH  := $(wildcard bench/*.c bench/kernels/*.c)
MAIN   := engine/main.c
LIB    := $(filter-out $(MAIN),$(ENGINE))
# Against the stand-in headers there.
STANDIN_T := $(wildcard tests/nccl/*.c) engine/comm_nccl.c tests/cudnn/test_cudnn.c kernels/cuda/cudnn.c kernels/cuda/attention_cudnn.c kernels/cuda/conv.c
obj     = $(foreach f,$(1),$(if $(filter $(f),$(SEES_MPI)),$(B),$(PLAIN))/$(f:.c=.o))
NVCC    := $(CUDA_HOME)/bin/nvcc
KERNELS :=  # objects of the .cu files
ifeq ($(CUDA),1)
ifeq ($(shell command -v $(NVCC)),)
$(error CUDA=1: there is no nvcc of the CUDA toolkit, $(NVCC) is missing (CUDA_HOME=FOLDER names another place))
endif
hash  := \#
LACKS := $(shell for h in cublasLt.h nccl.h cudnn_graph.h; do echo "$(hash)if !__has_include(<$$h>)"; echo $$h; echo "$(hash)endif"; done | $(CC) $(CPPFLAGS) -isystem $(CUDA_HOME)/include -E -P -x c -)
ifneq ($(LACKS),)
$(error CUDA=1: headers are missing: $(LACKS) (cublasLt.h comes with the CUDA toolkit, nccl.h with NCCL 2, cudnn_graph.h with cuDNN 9; CPATH=FOLDER names another place))
endif
NVCCFLAGS := -std=c++17 -O3 -lineinfo -cudart shared -Xcompiler -Wall,-Wextra,-Wno-unknown-pragmas -Werror all-warnings \
             $(foreach a,$(CUDA_ARCHS),-gencode arch=compute_$(a)$(comma)code=sm_$(a)) \
             -gencode arch=compute_$(lastword $(CUDA_ARCHS)),code=compute_$(lastword $(CUDA_ARCHS))
CPPFLAGS  += -DWITH_CUDA -DWITH_NCCL -isystem $(CUDA_HOME)/include
LDLIBS    += -L$(CUDA_HOME)/lib64 -Wl,-rpath,$(CUDA_HOME)/lib64 -lcublasLt -lnccl -lcudart -lstdc++
KERNELS   := $(patsubst %.cu,$(PLAIN)/%.cu.o,$(wildcard kernels/cuda/*.cu))
endif
emu_obj = $(addprefix $(PLAIN)/emu/,$(addsuffix .o,$(basename $(1))))

all: $(B)/vpdistill

$(B)/vpdistill: $(call obj,$(LIB) $(BENCH) $(VERBS) $(MAIN)) $(KERNELS)
	@echo "  LD $@"
	@$(CC) $(CFLAGS) $^ $(LDLIBS) -o $@

$(B)/test: $(call obj,$(LIB) $(BENCH) $(TESTS)) $(call emu_obj,$(EMU)) $(patsubst %.c,$(PLAIN)/standin/%.o,$(STANDIN_T)) $(KERNELS) $(if $(KERNELS),$(PLAIN)/tests/emu/twins.cu.o) | $(B)/standin/libcudnn.so $(B)/standin/libcuda.so
	@echo "  LD $@"
	@$(CC) $(CFLAGS) $^ $(LDLIBS) -lstdc++ -o $@

$(PLAIN)/%.o: %.c
	@mkdir -p $(@D)
	@echo "  CC $<"
	@$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c $< -o $@

$(addprefix $(B)/,$(SEES_MPI:.c=.o)): $(B)/%.o: %.c
	@mkdir -p $(@D)
	@echo "  CC $< (MPI)"
	@$(CC) $(CPPFLAGS) -DWITH_MPI $(shell mpicc --showme:compile) $(CFLAGS) -MMD -MP -c $< -o $@

$(PLAIN)/%.cu.o: %.cu
	@mkdir -p $(@D)
	@echo "  NVCC $<"
	@$(NVCC) $(CPPFLAGS) $(NVCCFLAGS) -MMD -MP -c $< -o $@

# comm_nccl.c over tests/nccl/standin.c, cuDNN's users over tests/cudnn/standin.c, under names of their own.
$(PLAIN)/standin/%.o: %.c
	@mkdir -p $(@D)
	@echo "  CC $< (stand-in)"
	@$(CC) -Itests/nccl -Itests/cudnn $(CPPFLAGS) $(CFLAGS) -Dtransport_nccl=transport_nccl_standin -MMD -MP -c $< -o $@

# Libraries that tests open: cuDNN in host memory; a driver of no card, for the real cuDNN (tests/cudnn/driver.c).
$(B)/standin/lib%.so:
	@mkdir -p $(@D)
	@echo "  LD $@"
	@$(CC) -Itests/nccl -Itests/cudnn $(CPPFLAGS) $(CFLAGS) -fPIC -shared $(filter %.c,$^) -lm -o $@
$(B)/standin/libcudnn.so: tests/cudnn/standin.c tests/cudnn/cudnn_graph.h tests/cudnn/numbers.h
$(B)/standin/libcuda.so: tests/cudnn/driver.c
$(B)/standin/libcuda.so: CFLAGS += -Wl,-soname,libcuda.so.1

# The same kernel sources that nvcc compiles, as plain C++ for the emulated card (tests/emu/emu.h).
$(PLAIN)/emu/%.o: %.cu
	@mkdir -p $(@D)
	@echo "  EMU $<"
	@$(CXX) -x c++ $(CPPFLAGS) $(EMUFLAGS) $(EMUSEES) -MMD -MP -c $< -o $@
$(PLAIN)/emu/%.o: %.cpp
	@mkdir -p $(@D)
	@echo "  CXX $<"
	@$(CXX) $(CPPFLAGS) $(EMUFLAGS) -MMD -MP -c $< -o $@

-include $(foreach b,$(sort $(PLAIN) $(B)),$(wildcard $(b)/*/*.d $(b)/*/*/*.d $(b)/*/*/*/*.d))

# ---- the two commands of the README --------------------------------------------------------------------

# Installs the Debian packages of packages.txt that are missing; says which when it may not.
deps:
	@missing=$$(for p in $$(grep -v '^#' packages.txt); do \
	    dpkg-query -W -f='$${db:Status-Status}' $$p 2>/dev/null | grep -qx installed || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	    if [ "$$(id -u)" = 0 ]; then sudo=; elif sudo -n true 2>/dev/null; then sudo=sudo; else \
	        echo "These Debian packages are missing, and installing them needs root:"; \
	        echo "  sudo apt-get install" $$missing; exit 1; fi; \
	    echo "installing" $$missing; \
	    $$sudo apt-get update -q && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing; fi

test: deps
	@$(MAKE) --no-print-directory $(B)/vpdistill $(B)/test
	@OMP_WAIT_POLICY=PASSIVE VPDISTILL=$(B)/vpdistill $(B)/test

# What tests ask of 1, 2 and 4 ranks, over MPI and started by mpirun.
mpi-test:
	@$(MAKE) --no-print-directory MPI=1 $(PLAIN)-mpi/vpdistill $(PLAIN)-mpi/test
	@OMP_WAIT_POLICY=PASSIVE VPDISTILL=$(PLAIN)-mpi/vpdistill $(PLAIN)-mpi/test mpi_

# 20 times each: a rank is killed, a rank is stopped, at a random step (tests/engine/test_lost.c).
ranks-soak: $(B)/vpdistill $(B)/test
	@VPDISTILL_SOAK=20 OMP_WAIT_POLICY=PASSIVE VPDISTILL=$(B)/vpdistill $(B)/test lost

# The demo's models from nothing but the seed: about an hour and a half on 2 cores.
P := build/pretrain
D := build/demo
pretrained: deps
	@$(MAKE) --no-print-directory $(B)/vpdistill
	@test -f $(P)/clean/dataset.json || $(B)/vpdistill scenes scenes.dir=$(P)/clean scenes.domain=clean scenes.train=24000 scenes.val=600 scenes.test=100 scenes.questions=4 scenes.steps=24 scenes.single=0.25 scenes.few=0.25
	@test -f $(P)/clean-few/dataset.json || $(B)/vpdistill scenes run.seed=11 scenes.dir=$(P)/clean-few scenes.domain=clean scenes.train=8000 scenes.val=200 scenes.test=0 scenes.questions=0 scenes.steps=32 scenes.single=0.6 scenes.few=0.4
	@test -f $(D)/hard/dataset.json || $(B)/vpdistill scenes configs/demo-scenes.yaml
	$(B)/vpdistill train configs/pretrain/vqa.yaml
	for k in 1 2 3; do $(B)/vpdistill train configs/pretrain/loc$$k.yaml || exit 1; done
	for k in "" 2; do $(B)/vpdistill train configs/pretrain/teacher$$k.yaml || exit 1; done
	for m in vqa:vqa loc:loc3 teacher:teacher2; do rm -rf configs/models/demo-$${m%%:*}; cp -r $(P)/$${m##*:}/model configs/models/demo-$${m%%:*}; done

demo: deps
	@$(MAKE) --no-print-directory $(B)/vpdistill
	@test -f $(D)/hard/dataset.json || $(B)/vpdistill scenes configs/demo-scenes.yaml
	$(B)/vpdistill distill configs/demo.yaml

include bench/bench.mk tests/fuzz/fuzz.mk tests/cuda/cuda.mk tests/parity/parity.mk

.PHONY: all deps test mpi-test ranks-soak demo pretrained
