# make demo    train a small model on real images, generate, judge
# make fashion the same on the 60,000 images of Fashion-MNIST, where they are installed
# make test    the tests
# make lint    ruff and mypy
# make peers   install other programs, for the tests that compare with them (tests/outside)
# make gpu     the checks and benchmarks for a GPU, to out/gpu/report.md
#
# The first call makes .venv; CPU=1 takes the CPU build of torch, which is much smaller:
#   make demo CPU=1
# PYTHON names another interpreter (3.10 or later); DEMO=long trains five times as long.

PYTHON ?= python3
DEMO ?= short
TORCH_INDEX = https://download.pytorch.org/whl/cpu
BIN = .venv/bin

.PHONY: help demo fashion test lint peers gpu clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile

.venv/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "limpid needs Python 3.10 or later; name one with PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' \
	  || { echo "Python's venv module is missing (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(if $(CPU),$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep ^torch== requirements.txt)" --index-url $(TORCH_INDEX))
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

demo: .venv/.installed
	$(BIN)/python demo.py --length=$(DEMO)

fashion: .venv/.installed
	$(BIN)/python demo.py --data=fashion --length=$(DEMO)

test: .venv/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/mypy

# Without what they need beside: the tests take single modules of them.
peers: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps k-diffusion==0.1.1.post1 \
	  prdc==0.2 ema-pytorch==0.8.3 lmdb denoising-diffusion-pytorch==2.3.4 einops==0.8.2 \
	  smalldiffusion==0.5.0

gpu: .venv/.installed
	$(BIN)/python -m benchmarks.gpu --dest=out/gpu

clean:
	rm -rf out .pytest_cache .ruff_cache .mypy_cache
