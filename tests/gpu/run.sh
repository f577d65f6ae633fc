#!/bin/sh
# The tests on a machine with a GPU: CUDA, PyTorch, no network. Under ten minutes.
#   tests/gpu/run.sh [WORK_FOLDER]
# Builds its plans with TensorRT 8.6 where TRT86_PYTHON names a Python 3.10 that has it
# (see docs/decisions/0033), else takes the ones in $ENGINEFARM_GPU_PLANS.
set -eu
cd "$(dirname "$0")/../.."
work=${1:-/tmp/enginefarm-gpu}
python=${PYTHON:-python3}
export PYTHONPATH="$PWD:$PWD/tests:$PWD/tests/gpu${PYTHONPATH:+:$PYTHONPATH}"
export ENGINEFARM_GPU_MODELS=${ENGINEFARM_GPU_MODELS:-$work/models}
export ENGINEFARM_GPU_PLANS=${ENGINEFARM_GPU_PLANS:-$work/plans}
[ -e "$ENGINEFARM_GPU_MODELS/conv.onnx" ] || $python tests/gpu/make_models.py "$ENGINEFARM_GPU_MODELS"
if [ -n "${TRT86_PYTHON:-}" ] && [ ! -e "$ENGINEFARM_GPU_PLANS/builds.json" ]; then
    env -u PYTHONPATH LD_LIBRARY_PATH="$TRT86_LIBRARIES" PYTHONPATH="$TRT86_SITE" \
        $TRT86_PYTHON tests/gpu/build_with_trt86.py "$ENGINEFARM_GPU_MODELS" "$ENGINEFARM_GPU_PLANS"
fi
$python -m pytest --confcutdir=tests/gpu -p no:cacheprovider -m gpu -rA --tb=short tests/gpu
