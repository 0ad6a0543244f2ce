# kdcache. `make` builds everything it can and says what it found; `make help` lists the targets.
#
# Useful variables: BUILD (object folder, default build), PREFIX and DESTDIR (install), CUDA_HOME, CUDNN_HOME, ONEDNN_HOME (a folder with include/
# and lib/ of another oneDNN, 2.x or 3.x, built for OpenMP; give it a BUILD of its own), CONDA_PREFIX,
# CC, CFLAGS, LDFLAGS, V=1 (print the commands).

VERSION := 0.1.0
BUILD ?= build
PREFIX ?= /usr/local
DESTDIR ?=
ifeq ($(origin CC),default)
CC := $(shell command -v gcc >/dev/null 2>&1 && echo gcc || echo cc)
endif
SAN ?=
MAKEFLAGS += --no-builtin-rules
comma := ,
.SUFFIXES:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := all

ifeq ($(V),1)
Q :=
else
Q := @
endif

# ---- what is on this machine ------------------------------------------------------------------------------------------
# name | pkg-config module or header | Debian/Ubuntu package | what it is for
LIBRARIES := lmdb:lmdb:liblmdb-dev zstd:libzstd:libzstd-dev jpeg:libjpeg:libjpeg-dev png:libpng:libpng-dev webp:libwebp:libwebp-dev \
             xxhash:libxxhash:libxxhash-dev jansson:jansson:libjansson-dev yaml:yaml-0.1:libyaml-dev zip:libzip:libzip-dev \
             crypto:libcrypto:libssl-dev archive:libarchive:libarchive-dev
TEST_LIBRARIES := cmocka:cmocka:libcmocka-dev
# Programs that tests run: name:package
TEST_PROGRAMS := ssh-keygen:openssh-client g++:g++

ifneq ($(CONDA_PREFIX),)
export PKG_CONFIG_PATH := $(CONDA_PREFIX)/lib/pkgconfig:$(CONDA_PREFIX)/share/pkgconfig:$(PKG_CONFIG_PATH)
SEARCH_CFLAGS := -isystem $(CONDA_PREFIX)/include
SEARCH_LDFLAGS := -L$(CONDA_PREFIX)/lib -Wl,-rpath,$(CONDA_PREFIX)/lib
endif

# Lines of the form found:NAME or missing:NAME:PACKAGE. A library counts as found when its module is known to pkg-config.
probe = $(shell for l in $(1); do IFS=:; set -- $$l; unset IFS; \
    if pkg-config --exists $$2 2>/dev/null; then echo found:$$1:$$2; else echo missing:$$1:$$3; fi; done)
# oneDNN has no pkg-config file on Debian, so its header and library are tried with the compiler.
probe_cc = $(shell printf '\043include <$(1)>\nint main(void){return 0;}\n' | $(CC) $(SEARCH_CFLAGS) -x c - $(SEARCH_LDFLAGS) $(2) -o /dev/null 2>/dev/null && echo yes)

PROBED := $(call probe,$(LIBRARIES))
PROBED_TEST := $(call probe,$(TEST_LIBRARIES))
HAVE_CC := $(shell command -v $(firstword $(CC)) 2>/dev/null)
HAVE_PKG_CONFIG := $(shell command -v pkg-config 2>/dev/null)
DNNL_CFLAGS := $(if $(ONEDNN_HOME),-isystem $(ONEDNN_HOME)/include)
DNNL_LIBS := $(if $(ONEDNN_HOME),-L$(ONEDNN_HOME)/lib -Wl$(comma)-rpath$(comma)$(abspath $(ONEDNN_HOME)/lib)) -ldnnl
HAVE_DNNL := $(if $(HAVE_CC),$(call probe_cc,dnnl.h,$(DNNL_CFLAGS) $(DNNL_LIBS)))
module = $(word 3,$(subst :, ,$(filter found:$(1):%,$(PROBED) $(PROBED_TEST))))
libs = $(shell pkg-config --libs $(foreach n,$(1),$(call module,$(n))) 2>/dev/null)

# CUDA (optional): nvcc in CUDA_HOME, on the PATH, in the usual folder, in a conda environment, in the wheels of python3's environment.
NVIDIA_WHEELS := $(shell python3 -c 'import os, nvidia as m; print(list(m.__path__)[0])' 2>/dev/null)
NVCC := $(firstword $(wildcard $(CUDA_HOME)/bin/nvcc) $(shell command -v nvcc 2>/dev/null) \
        $(wildcard /usr/local/cuda/bin/nvcc $(CONDA_PREFIX)/bin/nvcc $(NVIDIA_WHEELS)/cu*/bin/nvcc))
CUDA_ROOT := $(if $(NVCC),$(patsubst %/bin/,%,$(dir $(shell readlink -f $(NVCC)))))
CUDA_DIRS := $(CUDA_ROOT) $(CUDA_ROOT)/targets/x86_64-linux $(CONDA_PREFIX)/targets/x86_64-linux
# cuDNN: CUDNN_HOME, beside CUDA, the system's folder, conda, wheels.
CUDNN_DIRS := $(CUDNN_HOME) $(CUDA_DIRS) $(CUDA_ROOT)/../cudnn $(CONDA_PREFIX) $(NVIDIA_WHEELS)/cudnn /usr
CUDNN_HEADER := $(if $(NVCC),$(firstword $(wildcard $(addsuffix /include/cudnn.h,$(CUDNN_DIRS)) /usr/include/x86_64-linux-gnu/cudnn.h)))
# Wheels hold libraries by version number alone, so a library is linked by its path.
cuda_library = $(if $(NVCC),$(firstword $(wildcard $(foreach d,$(2),$(d)/lib64/$(1) $(d)/lib/$(1) $(d)/lib64/$(1).[0-9]* $(d)/lib/$(1).[0-9]*) /usr/lib/x86_64-linux-gnu/$(1))))
CUBLASLT := $(call cuda_library,libcublasLt.so,$(CUDA_DIRS) $(CONDA_PREFIX) $(NVIDIA_WHEELS)/cublas)
CUDART := $(call cuda_library,libcudart_static.a,$(CUDA_DIRS) $(CONDA_PREFIX))
CUDNN := $(call cuda_library,libcudnn.so,$(CUDNN_DIRS))
CUDA_LIBRARIES := $(CUBLASLT) $(CUDNN)
CUDA_SOURCES := $(sort $(wildcard kernels/cuda/*.cu kernels/cuda/*.c))
HAVE_CUDA := $(and $(NVCC),$(CUDNN_HEADER),$(CUBLASLT),$(CUDART),$(CUDNN))
# Machine code for the generations that this compiler knows of (CUDA_ARCHS=90: that one alone, to build faster), and PTX for the ones to come.
CUDA_ARCHS ?= $(filter 80 86 89 90 120,$(patsubst compute_%,%,$(if $(HAVE_CUDA),$(shell $(NVCC) --list-gpu-arch))))
CUDA_PTX = $(lastword $(filter-out 120,$(CUDA_ARCHS)))

MISSING_PACKAGES := $(if $(HAVE_CC),,gcc libc6-dev) $(if $(HAVE_PKG_CONFIG),,pkg-config) \
    $(foreach m,$(filter missing:%,$(PROBED)),$(word 3,$(subst :, ,$(m)))) $(if $(HAVE_DNNL),,libdnnl-dev)
MISSING_TEST_PACKAGES := $(foreach m,$(filter missing:%,$(PROBED_TEST)),$(word 3,$(subst :, ,$(m)))) \
    $(foreach p,$(TEST_PROGRAMS),$(if $(shell command -v $(firstword $(subst :, ,$(p))) 2>/dev/null),,$(lastword $(subst :, ,$(p)))))

# ---- flags ------------------------------------------------------------------------------------------------------------
# _GNU_SOURCE: the affinity mask, free space of a file system and process-wide advice are not in POSIX.
# No fast-math and no contraction anywhere: the bits of images and hashes are promised, and NaN must stay visible.
WARNINGS := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla
CFLAGS ?= -g
BASE_CFLAGS := -std=c11 -D_GNU_SOURCE -O2 $(WARNINGS) -ffp-contract=off -fPIC -pthread -I. -DKD_VERSION='"$(VERSION)"' $(SEARCH_CFLAGS)
SAN_FLAGS_ :=
SAN_FLAGS_address := -fsanitize=address -fno-omit-frame-pointer
SAN_FLAGS_undefined := -fsanitize=undefined -fno-sanitize-recover=undefined
# Functions with clones are chosen before the thread sanitizer has started, which crashes it: it gets the portable clone only.
SAN_FLAGS_thread := -fsanitize=thread -Dtarget_clones\(...\)=unused
SAN_FLAGS_fuzzer := -fsanitize=fuzzer-no-link,address -DKD_LIBFUZZER
SAN_FLAGS := $(SAN_FLAGS_$(SAN))
ALL_CFLAGS = $(BASE_CFLAGS) $(SAN_FLAGS) $(CFLAGS)
ALL_LDFLAGS = -pthread $(SAN_FLAGS) $(SEARCH_LDFLAGS) -Wl,--as-needed $(LDFLAGS)
KERNEL_CFLAGS := -O3 -fno-math-errno
CONFIG := $(if $(SAN),$(SAN),release)-$(shell echo '$(CC) $(ALL_CFLAGS) $(KERNEL_CFLAGS) $(LDFLAGS)$(DNNL_CFLAGS)' | cksum | cut -d' ' -f1)
OBJ := $(BUILD)/obj/$(CONFIG)
# The plain build fills bin/ and lib/; any other object folder or sanitizer keeps its programs to itself.
ROOT := $(if $(SAN),$(OBJ)/,$(if $(filter build,$(BUILD)),,$(BUILD)/))
BIN := $(ROOT)bin
LIB := $(ROOT)lib

# ---- sources ----------------------------------------------------------------------------------------------------------
MAINS := precompute/kd_precompute.c train/kd_train.c train/kd_eval.c train/kd_export.c cache/kd_cache.c
COMMON_SRC := $(sort $(wildcard common/*/*.c))
KERNELS_SRC := $(sort $(wildcard kernels/*.c kernels/ref/*.c kernels/nn/*.c))
CACHE_SRC := $(sort $(filter-out $(MAINS),$(wildcard cache/*.c)))
PRECOMPUTE_SRC := $(sort $(filter-out $(MAINS),$(wildcard precompute/*.c)))
TRAIN_SRC := $(sort $(filter-out $(MAINS),$(wildcard train/*.c train/*/*.c)))
CPU_SRC := $(sort $(wildcard kernels/cpu/*.c))
LAYERS := $(if $(TRAIN_SRC),train) $(if $(PRECOMPUTE_SRC),precompute) $(if $(CACHE_SRC),cache) $(if $(KERNELS_SRC),kernels) common
archives = $(foreach l,$(filter $(LAYERS),$(1)),$(OBJ)/libkd_$(l).a)
objects = $(patsubst %.c,$(OBJ)/%.o,$(1))

HAVE_MAINS := $(wildcard $(MAINS))
PROGRAMS := $(foreach m,$(HAVE_MAINS),$(BIN)/$(subst _,-,$(basename $(notdir $(m)))))
MODULES := $(if $(and $(CPU_SRC),$(HAVE_DNNL)),$(LIB)/libkd_cpu.so) $(if $(and $(CUDA_SOURCES),$(HAVE_CUDA)),$(LIB)/libkd_cuda.so)

TEST_DIRS := unit ops golden cli fault e2e
TEST_SRC := $(sort $(foreach d,$(TEST_DIRS),$(wildcard tests/$(d)/test_*.c)))
TEST_BINARIES := $(patsubst tests/%.c,$(OBJ)/tests/%,$(TEST_SRC))
BENCH_SRC := $(sort $(wildcard tests/bench/bench_*.c))
BENCH_BINARIES := $(patsubst tests/%.c,$(OBJ)/tests/%,$(BENCH_SRC))
# Draws the demo's pictures; the end-to-end tests use them too.
DRAW := $(OBJ)/tests/demo/draw_pictures
FUZZ_SRC := $(sort $(wildcard tests/fuzz/fuzz_*.c))
FUZZ_BINARIES := $(patsubst tests/%.c,$(OBJ)/tests/%,$(FUZZ_SRC))
# draw_*.c and run_*.c are small programs that tests and the demo use; any other C file beside the tests is shared by all tests of its folder.
TOOL_SRC := $(sort $(wildcard tests/*/draw_*.c tests/*/run_*.c))
TOOL_BINARIES := $(patsubst tests/%.c,$(OBJ)/tests/%,$(TOOL_SRC))
# shim_*.c are libraries that tests load into the programs with LD_PRELOAD.
SHIM_SRC := $(sort $(wildcard tests/*/shim_*.c))
SHIMS := $(patsubst tests/%.c,$(OBJ)/tests/%.so,$(SHIM_SRC))
test_helpers = $(call objects,$(filter-out $(foreach p,test bench fuzz draw run shim,tests/$(1)/$(p)_%.c),$(wildcard tests/$(1)/*.c)))

# The cuda module for an emulated device, for the op tests on machines without one.
EMULATOR := tests/gpu/emulator
EMULATED := $(OBJ)/$(EMULATOR)/libkd_cuda.so
EMULATED_OBJECTS := $(patsubst %,$(OBJ)/$(EMULATOR)/%.o,$(CUDA_SOURCES) $(notdir $(wildcard $(EMULATOR)/*.cc)))

COMMON_LIBS = $(call libs,jansson yaml crypto jpeg png webp zip archive) -lm -ldl
CACHE_LIBS = $(call libs,lmdb zstd)

# ---- main targets -----------------------------------------------------------------------------------------------------
.PHONY: all build report required programs modules test-programs test unit bench demo deps check headers layers exits asan ubsan tsan \
        install uninstall bundle clean help format run-tests run-demo

## all: report what was found, then build the programs (bin/) and backend modules (lib/)
all: report
	$(Q)$(MAKE) --no-print-directory build

# Without the report. The inner make starts only when nothing is missing.
build: required
	$(Q)$(MAKE) --no-print-directory programs modules $(if $(KD_WITH_TESTS),test-programs) $(if $(KD_WITH_TOOLS),$(TOOL_BINARIES))

programs: $(PROGRAMS)
	@:
modules: $(MODULES)
	@:

report:
	@printf '%-12s %-9s %s\n' compiler '$(if $(HAVE_CC),found,MISSING)' '$(if $(HAVE_CC),$(HAVE_CC),apt install gcc libc6-dev)'
	@printf '%-12s %-9s %s\n' pkg-config '$(if $(HAVE_PKG_CONFIG),found,MISSING)' '$(if $(HAVE_PKG_CONFIG),,apt install pkg-config)'
	@for l in $(PROBED) $(PROBED_TEST); do IFS=:; set -- $$l; unset IFS; \
	    if [ $$1 = found ]; then printf '%-12s %-9s %s\n' $$2 found "$$(pkg-config --modversion $$3)"; \
	    else printf '%-12s %-9s %s\n' $$2 MISSING "apt install $$3"; fi; done
	@printf '%-12s %-9s %s\n' oneDNN '$(if $(HAVE_DNNL),found,MISSING)' '$(if $(HAVE_DNNL),$(ONEDNN_HOME),apt install libdnnl-dev$(if $(ONEDNN_HOME),: $(ONEDNN_HOME) has no include/dnnl.h and lib/libdnnl.so that link))'
	@printf '%-12s %-9s %s\n' CUDA '$(if $(NVCC),found,no)' '$(if $(NVCC),$(NVCC),optional, for --device cuda: install the CUDA toolkit or set CUDA_HOME)'
	@$(if $(NVCC),printf '%-12s %-9s %s\n' cuBLASLt '$(if $(and $(CUBLASLT),$(CUDART)),found,no)' '$(if $(and $(CUBLASLT),$(CUDART)),$(CUBLASLT),optional: it and libcudart_static.a belong beside $(NVCC))',:)
	@$(if $(NVCC),printf '%-12s %-9s %s\n' cuDNN '$(if $(and $(CUDNN_HEADER),$(CUDNN)),found,no)' '$(if $(and $(CUDNN_HEADER),$(CUDNN)),$(CUDNN),optional: set CUDNN_HOME)',:)

required:
ifneq ($(strip $(MISSING_PACKAGES)),)
	@echo 'kdcache cannot be built yet: missing $(strip $(MISSING_PACKAGES)). Run "make deps" (apt), or see docs/install/ for machines without root.' >&2; exit 1
endif

## deps: install what is missing with apt (Debian, Ubuntu); elsewhere print the list
deps:
ifeq ($(strip $(MISSING_PACKAGES) $(MISSING_TEST_PACKAGES)),)
	@:
else
	@if ! grep -qsE '^ID(_LIKE)?=.*(debian|ubuntu)' /etc/os-release || ! command -v apt-get >/dev/null; then \
	    echo 'Install these (Debian names) with this system'"'"'s package manager, or see docs/install/: $(strip $(MISSING_PACKAGES) $(MISSING_TEST_PACKAGES))' >&2; exit 1; fi; \
	if [ "$$(id -u)" = 0 ]; then sudo=; elif command -v sudo >/dev/null; then sudo=sudo; else \
	    echo 'Ask an administrator to run: apt-get install $(strip $(MISSING_PACKAGES) $(MISSING_TEST_PACKAGES)); or see docs/install/ for ways without root.' >&2; exit 1; fi; \
	echo 'Installing: $(strip $(MISSING_PACKAGES) $(MISSING_TEST_PACKAGES))'; \
	$$sudo apt-get update -qq && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	    $(strip $(MISSING_PACKAGES) $(MISSING_TEST_PACKAGES))
endif

## test: every test (unit, ops, golden, cli, fault, e2e); does its own set-up
# A new make for the real work: what deps has just installed is looked for when the Makefile is read.
test: deps
	$(Q)$(MAKE) --no-print-directory -j$(shell nproc 2>/dev/null || echo 2) KD_WITH_TESTS=1 build
	$(Q)$(MAKE) --no-print-directory run-tests

test-programs: required $(TEST_BINARIES) $(DRAW) $(TOOL_BINARIES) $(SHIMS) $(EMULATED)
	@:

# SUITES=unit,ops picks folders; TESTS=word picks files whose name contains it.
run-tests:
	$(Q)KD_BIN='$(abspath $(BIN))' KD_LIB_DIR='$(abspath $(LIB))' KD_TEST_DIR='$(abspath $(OBJ)/tests)' SUITES='$(SUITES)' TESTS='$(TESTS)' tests/run.sh

## unit: only the unit tests
unit: required
	$(Q)$(MAKE) --no-print-directory test-programs
	$(Q)$(MAKE) --no-print-directory run-tests SUITES=unit

## asan, ubsan, tsan: unit tests with that sanitizer (SUITES=unit,ops for more)
asan:
	$(Q)$(MAKE) --no-print-directory SAN=address sanitized
ubsan:
	$(Q)$(MAKE) --no-print-directory SAN=undefined sanitized
tsan:
	$(Q)$(MAKE) --no-print-directory SAN=thread sanitized

.PHONY: sanitized
sanitized: SUITES ?= unit
sanitized: required modules
	$(Q)$(MAKE) --no-print-directory $(filter $(foreach s,$(subst $(comma), ,$(or $(SUITES),unit)),$(OBJ)/tests/$(s)/%),$(TEST_BINARIES)) $(if $(findstring ops,$(SUITES)),$(EMULATED))
	$(Q)$(MAKE) --no-print-directory run-tests SUITES='$(or $(SUITES),unit)' KD_NO_SCRIPTS=1


## demo: the whole job on drawn pictures; IMAGES=dir WEIGHTS=file use your own
demo: deps
	$(Q)$(MAKE) --no-print-directory -j$(shell nproc 2>/dev/null || echo 2) KD_WITH_TOOLS=1 build
	$(Q)KD_BIN='$(abspath $(BIN))' KD_LIB_DIR='$(abspath $(LIB))' DRAW='$(abspath $(OBJ)/tests/demo/draw_pictures)' IMAGES='$(IMAGES)' WEIGHTS='$(WEIGHTS)' tests/demo/demo.sh

## bench: every bench beside its peers (BENCH="models loader" picks; PYTHON=interpreter, TURNS=5, KD_TEST_DATA=dir); tables in tests/bench/results/, what they say in tests/bench/README.md
bench: build $(BENCH_BINARIES) $(DRAW)
	$(Q)CC='$(CC)' KD_BIN='$(abspath $(BIN))' KD_LIB_DIR='$(abspath $(LIB))' KD_TEST_DIR='$(abspath $(OBJ)/tests)' tests/bench/run.sh

## bench-loader: images per second beside Pillow + torchvision (IMAGES=dir, PYTHON=interpreter)
.PHONY: bench-loader
bench-loader: required $(OBJ)/tests/bench/bench_loader
	$(Q)KD_TEST_DIR='$(abspath $(OBJ)/tests)' IMAGES='$(IMAGES)' tests/bench/loader.sh

## bench-cache: writing and reading caches beside numpy.memmap, .npy files and WebDataset (PYTHON=interpreter)
.PHONY: bench-cache
bench-cache: required $(OBJ)/tests/bench/bench_cache
	$(Q)KD_TEST_DIR='$(abspath $(OBJ)/tests)' tests/bench/cache.sh

## bench-scaling: caches of 1,000 to 1,000,000 views, and kd-train on 1 and 2 processors (KD_TEST_DATA=dir for real photos)
.PHONY: bench-scaling
bench-scaling: build $(DRAW) $(OBJ)/tests/bench/bench_scaling $(OBJ)/tests/bench/bench_peak
	$(Q)KD_BIN='$(abspath $(BIN))' KD_LIB_DIR='$(abspath $(LIB))' KD_TEST_DIR='$(abspath $(OBJ)/tests)' tests/bench/scaling.sh

## bench-memory: the printed plans beside measured peaks, and PyTorch's for the same step (PYTHON=interpreter with torch, KD_TEST_DATA=dir for real photos)
.PHONY: bench-memory
bench-memory: build $(DRAW)
	$(Q)KD_BIN='$(abspath $(BIN))' KD_LIB_DIR='$(abspath $(LIB))' KD_TEST_DIR='$(abspath $(OBJ)/tests)' PYTHON='$(or $(PYTHON),python3)' tests/bench/memory.sh

## bench-knn: exact neighbours beside faiss's flat index (PYTHON=interpreter with faiss-cpu)
.PHONY: bench-knn
bench-knn: build $(OBJ)/tests/bench/bench_knn
	$(Q)KD_LIB_DIR='$(abspath $(LIB))' KD_TEST_DIR='$(abspath $(OBJ)/tests)' tests/bench/knn.sh

## bench-students: 1, 2 and 4 students in one pass beside a run for each (KD_TEST_DATA=dir for real photos)
.PHONY: bench-students
bench-students: build $(DRAW)
	$(Q)KD_BIN='$(abspath $(BIN))' KD_LIB_DIR='$(abspath $(LIB))' KD_TEST_DIR='$(abspath $(OBJ)/tests)' tests/bench/students.sh

## bench-end-to-end: kd-precompute and kd-train beside PyTorch and LightlyTrain, 25 minutes (KD_TEST_DATA=dir, PYTHON=interpreter)
.PHONY: bench-end-to-end
bench-end-to-end: build
	$(Q)KD_BIN='$(abspath $(BIN))' KD_LIB_DIR='$(abspath $(LIB))' tests/bench/end_to_end.sh

## bench-losses: students x losses for equal time, and the curve of cached views; hours (KD_TEST_DATA=dir, WORK=dir, PYTHON=interpreter)
.PHONY: bench-losses
bench-losses: build
	$(Q)KD_BIN='$(abspath $(BIN))' $(or $(PYTHON),python3) tests/bench/losses.py

## fuzz: build the fuzz targets as replayers of files; with CC=clang SAN=fuzzer for libFuzzer
.PHONY: fuzz
fuzz: required $(FUZZ_BINARIES)
	@echo 'in $(OBJ)/tests/fuzz:' $(notdir $(FUZZ_BINARIES))

# ---- rules ------------------------------------------------------------------------------------------------------------
$(OBJ)/kernels/%.o: kernels/%.c
	@mkdir -p $(@D)
	@$(if $(Q),echo '  cc   $<')
	$(Q)$(CC) $(ALL_CFLAGS) $(KERNEL_CFLAGS) $(if $(filter kernels/cpu/%,$<),-fopenmp -Wno-psabi $(DNNL_CFLAGS)) -MMD -MP -c $< -o $@

# Conversions and XXH3 run 2 to 4 times as fast when the compiler vectorises them (no bits change: still no fast-math).
$(OBJ)/common/tensor/%.o $(OBJ)/common/base/hash.o: ALL_CFLAGS += -O3
# Norms of features and the scan of their similarities: as fast as memory, with vectors.
$(OBJ)/train/eval/neighbours.o: ALL_CFLAGS += -O3
# Pixel loops: vectorised, and assuming that no floating-point exception is caught. Neither changes a bit.
$(OBJ)/common/image/%.o: ALL_CFLAGS += -O3 -fno-math-errno -fno-trapping-math

# Tests run once: compiling them with less optimisation gains more than it loses.
$(foreach d,$(TEST_DIRS),$(OBJ)/tests/$(d)/%.o): ALL_CFLAGS += -O1

$(OBJ)/%.o: %.c
	@mkdir -p $(@D)
	@$(if $(Q),echo '  cc   $<')
	$(Q)$(CC) $(ALL_CFLAGS) -MMD -MP -c $< -o $@

# An archive is made anew, so that an object whose source was removed leaves it; the list file notices that.
define archive_rule
$(OBJ)/libkd_$(1).a: $(call objects,$(2)) $(OBJ)/libkd_$(1).list
	@$(if $(Q),echo '  ar   libkd_$(1).a')
	$(Q)rm -f $$@ && ar rcs $$@ $(call objects,$(2))
$(OBJ)/libkd_$(1).list: FORCE
	@mkdir -p $$(@D)
	@echo '$(2)' | cmp -s - $$@ || echo '$(2)' > $$@
endef
.PHONY: FORCE
# What bin/ and lib/ were linked of: another configuration's objects may be older than they are (make ONEDNN_HOME=.., then make).
CONFIGURED := $(if $(ROOT),$(ROOT),$(BUILD)/)configuration.txt
$(CONFIGURED): FORCE
	@mkdir -p $(@D)
	@echo '$(CONFIG)' | cmp -s - $@ || echo '$(CONFIG)' > $@
$(eval $(call archive_rule,common,$(COMMON_SRC)))
$(eval $(call archive_rule,kernels,$(KERNELS_SRC)))
$(eval $(call archive_rule,cache,$(CACHE_SRC)))
$(eval $(call archive_rule,precompute,$(PRECOMPUTE_SRC)))
$(eval $(call archive_rule,train,$(TRAIN_SRC)))

# -rdynamic: a module uses the program's copy of common/ (memory counters, log level) instead of its own.
# $(1) program, $(2) main source, $(3) layers, $(4) libraries
define program_rule
$(BIN)/$(1): $(call objects,$(2)) $(call archives,$(3)) $(CONFIGURED)
	@mkdir -p $$(@D)
	@$(if $(Q),echo '  link $$@')
	$(Q)$(CC) $(ALL_LDFLAGS) $(if $(filter kernels,$(3)),-rdynamic) $$(filter %.o,$$^) -Wl$(comma)--start-group $$(filter %.a,$$^) -Wl$(comma)--end-group $(4) -o $$@
endef
$(eval $(call program_rule,kd-precompute,precompute/kd_precompute.c,precompute cache kernels common,$(CACHE_LIBS) $(COMMON_LIBS)))
$(eval $(call program_rule,kd-train,train/kd_train.c,train cache kernels common,$(CACHE_LIBS) $(COMMON_LIBS)))
$(eval $(call program_rule,kd-eval,train/kd_eval.c,train cache kernels common,$(CACHE_LIBS) $(COMMON_LIBS)))
$(eval $(call program_rule,kd-export,train/kd_export.c,train cache kernels common,$(CACHE_LIBS) $(COMMON_LIBS)))
$(eval $(call program_rule,kd-cache,cache/kd_cache.c,cache common,$(CACHE_LIBS) $(COMMON_LIBS)))

$(LIB)/libkd_cpu.so: $(call objects,$(CPU_SRC)) $(call archives,common) $(CONFIGURED)
	@mkdir -p $(@D)
	@$(if $(Q),echo '  link $@')
	$(Q)$(CC) -shared $(ALL_LDFLAGS) -fopenmp $(filter %.o,$^) $(filter %.a,$^) $(DNNL_LIBS) $(COMMON_LIBS) -o $@

# No contraction of a * b + c, as on the host: where a kernel wants a fused multiply-add, it says so.
NVCC_FLAGS = -std=c++17 -O3 -fmad=false -Wno-deprecated-gpu-targets -Xcompiler -fPIC,-Wall,-ffp-contract=off $(foreach a,$(CUDA_ARCHS),-gencode arch=compute_$(a),code=sm_$(a)) \
    $(if $(CUDA_PTX),-gencode arch=compute_$(CUDA_PTX)$(comma)code=compute_$(CUDA_PTX))
CUDA_INCLUDES = $(foreach d,$(CUDA_DIRS),-isystem $(d)/include) -isystem $(dir $(CUDNN_HEADER))
$(OBJ)/kernels/cuda/%.cu.o: kernels/cuda/%.cu
	@mkdir -p $(@D)
	@$(if $(Q),echo '  nvcc $<')
	$(Q)$(NVCC) $(NVCC_FLAGS) -I. $(CUDA_INCLUDES) -MMD -MP -c $< -o $@
$(OBJ)/kernels/cuda/%.o: ALL_CFLAGS += $(CUDA_INCLUDES)

$(LIB)/libkd_cuda.so: $(patsubst %.cu,$(OBJ)/%.cu.o,$(filter %.cu,$(CUDA_SOURCES))) $(call objects,$(filter %.c,$(CUDA_SOURCES))) $(call archives,common) $(CONFIGURED)
	@mkdir -p $(@D)
	@$(if $(Q),echo '  link $@')
	$(Q)$(NVCC) -shared -Wno-deprecated-gpu-targets -cudart none $(filter %.o,$^) $(filter %.a,$^) $(CUDA_LIBRARIES) $(CUDART) $(foreach l,$(CUDA_LIBRARIES),-Xlinker -rpath=$(dir $(l))) $(COMMON_LIBS) -lrt -lpthread -ldl -o $@

# The same sources for an emulated device (tests/gpu/emulator): the host's C++ compiler, with an emulation of the libraries in front.
EMULATOR_FLAGS = -std=c++20 -O2 -g -Wall -Wno-deprecated-enum-enum-conversion -Wno-unknown-pragmas -ffp-contract=off -fPIC -I$(EMULATOR) -I. $(SEARCH_CFLAGS)
$(OBJ)/$(EMULATOR)/%.cu.o: %.cu
	@mkdir -p $(@D)
	@$(if $(Q),echo '  c++  $<')
	$(Q)$(CXX) $(EMULATOR_FLAGS) -MMD -MP -x c++ -c $< -o $@
$(OBJ)/$(EMULATOR)/%.cc.o: $(EMULATOR)/%.cc
	@mkdir -p $(@D)
	@$(if $(Q),echo '  c++  $<')
	$(Q)$(CXX) $(EMULATOR_FLAGS) -MMD -MP -c $< -o $@
$(OBJ)/$(EMULATOR)/%.c.o: %.c
	@mkdir -p $(@D)
	@$(if $(Q),echo '  cc   $< (emulated)')
	$(Q)$(CC) $(ALL_CFLAGS) -I$(EMULATOR) -MMD -MP -c $< -o $@
$(EMULATED): $(EMULATED_OBJECTS) $(call archives,common)
	@$(if $(Q),echo '  link $@')
	$(Q)$(CXX) -shared $(filter %.o,$^) $(filter %.a,$^) $(COMMON_LIBS) -o $@
	$(Q)ln -sf '$(abspath $(LIB))/libkd_cpu.so' $(@D)/
-include $(wildcard $(OBJ)/$(EMULATOR)/*.d $(OBJ)/$(EMULATOR)/kernels/cuda/*.d)

.SECONDEXPANSION:
$(OBJ)/tests/%: $(OBJ)/tests/%.o $$(call test_helpers,$$(patsubst %/,%,$$(dir $$*))) $(call archives,$(LAYERS))
	@$(if $(Q),echo '  link $@')
	$(Q)$(CC) $(ALL_LDFLAGS) $(if $(filter fuzzer,$(SAN)),-fsanitize=fuzzer) -rdynamic $(filter %.o,$^) -Wl,--start-group $(filter %.a,$^) -Wl,--end-group $(call libs,cmocka) $(CACHE_LIBS) $(COMMON_LIBS) -o $@

$(OBJ)/tests/%.so: $(OBJ)/tests/%.o
	@$(if $(Q),echo '  link $@')
	$(Q)$(CC) -shared $(ALL_LDFLAGS) $< -ldl -o $@

.SECONDARY:
-include $(wildcard $(addsuffix .d,$(basename $(call objects,$(COMMON_SRC) $(KERNELS_SRC) $(CACHE_SRC) $(PRECOMPUTE_SRC) $(TRAIN_SRC) $(CPU_SRC) $(HAVE_MAINS) $(TEST_SRC) $(BENCH_SRC) $(FUZZ_SRC) $(TOOL_SRC) $(SHIM_SRC) $(foreach d,$(TEST_DIRS) bench fuzz,$(wildcard tests/$(d)/*.c))))))
-include $(wildcard $(OBJ)/kernels/cuda/*.d)

# ---- checks -----------------------------------------------------------------------------------------------------------
## check: layering, headers that compile alone, no exit or abort outside the mains
check: layers headers exits

layers:
	$(Q)tests/layers.sh

## headers: compile each header alone with gcc (and nvcc, where it must)
HEADERS = $(sort $(wildcard common/*/*.h kernels/*.h kernels/*/*.h cache/*.h precompute/*.h train/*.h train/*/*.h))
NVCC_HEADERS = $(filter kernels/%.h,$(filter-out kernels/cpu/%,$(HEADERS))) common/base/err.h
headers:
	$(Q)bad=0; for h in $(filter-out kernels/cuda/%,$(HEADERS)); do \
	    printf '#include "%s"\ntypedef int kd_header_check;\n' $$h | $(CC) $(ALL_CFLAGS) -Wno-psabi -fsyntax-only -x c - || { echo "$$h: does not compile alone"; bad=1; }; done; \
	$(if $(NVCC),for h in $(NVCC_HEADERS); do printf '#include "%s"\n' $$h > $(OBJ)/header.cu; \
	    $(NVCC) -I. -c $(OBJ)/header.cu -o /dev/null || { echo "$$h: does not compile with nvcc"; bad=1; }; done;) \
	[ $$bad = 0 ] && echo 'headers: $(words $(HEADERS)) compile alone'

# Programs end in their mains; kd_assert_failed (err.c) is the one other place that may end the process.
exits: $(call archives,$(LAYERS))
	$(Q)bad=$$(for a in $^; do nm -A $$a 2>/dev/null; done | grep -E ' U (exit|_exit|_Exit|quick_exit|abort)$$' | grep -v ':err\.o:'); \
	if [ -n "$$bad" ]; then echo "exit or abort is called outside the mains:"; echo "$$bad"; exit 1; fi; echo 'exits: only in the mains'

## format: clang-format over the C files, where it is installed
format:
	$(Q)command -v clang-format >/dev/null || { echo 'clang-format is not installed' >&2; exit 1; }
	$(Q)clang-format -i $(COMMON_SRC) $(KERNELS_SRC) $(CACHE_SRC) $(PRECOMPUTE_SRC) $(TRAIN_SRC) $(CPU_SRC) $(HAVE_MAINS) $(TEST_SRC)

# ---- install ----------------------------------------------------------------------------------------------------------
PROGRAM_NAMES = $(notdir $(PROGRAMS))
MAN_PAGES = $(wildcard docs/man/*.1)

## install: programs, modules, manual pages, completion under PREFIX (DESTDIR for packagers)
install: build
	install -d '$(DESTDIR)$(PREFIX)/bin' '$(DESTDIR)$(PREFIX)/lib' '$(DESTDIR)$(PREFIX)/share/man/man1' '$(DESTDIR)$(PREFIX)/share/bash-completion/completions'
	for p in $(PROGRAMS); do install -m 755 $$p '$(DESTDIR)$(PREFIX)/bin/' || exit 1; done
	for m in $(MODULES); do install -m 755 $$m '$(DESTDIR)$(PREFIX)/lib/' || exit 1; done
	for m in $(MAN_PAGES); do install -m 644 $$m '$(DESTDIR)$(PREFIX)/share/man/man1/' || exit 1; done
	for p in $(PROGRAMS); do n=$$(basename $$p); \
	    [ -f docs/man/$$n.1 ] || $$p --man > '$(DESTDIR)$(PREFIX)/share/man/man1/'$$n.1 || exit 1; \
	    $$p --completion > '$(DESTDIR)$(PREFIX)/share/bash-completion/completions/'$$n || exit 1; done

## uninstall: remove what install put under PREFIX
uninstall:
	for n in $(PROGRAM_NAMES); do rm -f '$(DESTDIR)$(PREFIX)/bin/'$$n '$(DESTDIR)$(PREFIX)/share/man/man1/'$$n.1 \
	    '$(DESTDIR)$(PREFIX)/share/bash-completion/completions/'$$n; done
	rm -f '$(DESTDIR)$(PREFIX)/lib/libkd_cpu.so' '$(DESTDIR)$(PREFIX)/lib/libkd_cuda.so' $(foreach m,$(MAN_PAGES),'$(DESTDIR)$(PREFIX)/share/man/man1/$(notdir $(m))')

BUNDLE := dist/kdcache-bundle
BUNDLE_TESTS := $(addprefix $(OBJ)/tests/,ops/test_ops_cuda bench/bench_model demo/draw_pictures)
## bundle: a folder that runs on other machines of this kind without installing anything
# The C library stays the target's own; its newest symbol version decides how old the target may be. tests/gpu/qualify.sh runs from it.
bundle: build
	$(Q)$(MAKE) --no-print-directory $(BUNDLE_TESTS)
	$(Q)tests/bundle.sh '$(BUNDLE)' $(PROGRAMS) -- $(MODULES) -- $(BUNDLE_TESTS)

## clean: remove what this Makefile makes
clean:
	rm -rf $(BUILD)/obj $(if $(filter build,$(BUILD)),build bin lib dist)

## help: this list
help:
	@sed -n 's/^## \([a-z, ]*\): \(.*\)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r t d; do printf '  %-20s %s\n' "$$t" "$$d"; done
