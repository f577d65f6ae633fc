#!/bin/sh
# The tests on a machine with a GPU: CUDA, PyTorch, no network. Under ten minutes.
#   tests/gpu/run.sh [WORK_FOLDER]
#
# PYTHON                    has pycuda and a TensorRT (default python3)
# ENGINEFARM_TORCH_PYTHON   has PyTorch (default $PYTHON), with ENGINEFARM_TORCH_PYTHONPATH
# TRT86_PYTHON              a Python 3.10 with tensorrt 8.6 builds the plans, with TRT86_SITE and
#                           TRT86_LIBRARIES; without it they must lie in ENGINEFARM_GPU_PLANS
set -eu
cd "$(dirname "$0")/../.."
work=${1:-/tmp/enginefarm-gpu}
python=${PYTHON:-python3}
export ENGINEFARM_TORCH_PYTHON="${ENGINEFARM_TORCH_PYTHON:-$python}"
export PYTHONPATH="$PWD:$PWD/tests:$PWD/tests/gpu${PYTHONPATH:+:$PYTHONPATH}"
here="$PWD:$PWD/tests:$PWD/tests/gpu"
export ENGINEFARM_TORCH_PYTHONPATH="$here${ENGINEFARM_TORCH_PYTHONPATH:+:$ENGINEFARM_TORCH_PYTHONPATH}"
export ENGINEFARM_GPU_MODELS="${ENGINEFARM_GPU_MODELS:-$work/models}"
export ENGINEFARM_GPU_PLANS="${ENGINEFARM_GPU_PLANS:-$work/plans}"
if [ ! -e "$ENGINEFARM_GPU_MODELS/conv.onnx" ]; then
    LD_LIBRARY_PATH= PYTHONPATH="$ENGINEFARM_TORCH_PYTHONPATH" \
        "$ENGINEFARM_TORCH_PYTHON" -W ignore tests/gpu/make_models.py "$ENGINEFARM_GPU_MODELS"
fi
if [ -n "${TRT86_PYTHON:-}" ] && [ ! -e "$ENGINEFARM_GPU_PLANS/builds.json" ]; then
    LD_LIBRARY_PATH="$TRT86_LIBRARIES" PYTHONPATH="$TRT86_SITE" \
        "$TRT86_PYTHON" tests/gpu/build_with_trt86.py "$ENGINEFARM_GPU_MODELS" "$ENGINEFARM_GPU_PLANS"
fi
exec "$python" -m pytest --confcutdir=tests/gpu -p no:cacheprovider -m gpu -rA --tb=short tests/gpu
