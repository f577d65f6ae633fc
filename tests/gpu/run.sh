#!/bin/sh
# The tests on a machine with a GPU: CUDA, PyTorch, no network.
#   tests/gpu/run.sh WORK_FOLDER [TEST_FILE …]
#
# PYTHON                    has the farm, pycuda and TensorRT 8.6 (default python3)
# ENGINEFARM_TORCH_PYTHON   has PyTorch (default $PYTHON), with ENGINEFARM_TORCH_PYTHONPATH
# ENGINEFARM_ORT_PYTHONPATH where onnxruntime-gpu with its TensorRT is; unset: no test_ort_trt.py
# ENGINEFARM_GPU_LABEL      the label of the GPU at hand (default h100)
#
# test_flow.py goes first: the engines that the farm builds are the plans of the other tests.
set -eu
cd "$(dirname "$0")/../.."
work=${1:-/tmp/enginefarm-gpu}
[ $# -eq 0 ] || shift
python=${PYTHON:-python3}
here="$PWD:$PWD/tests:$PWD/tests/gpu"
export ENGINEFARM_TORCH_PYTHON="${ENGINEFARM_TORCH_PYTHON:-$python}"
export ENGINEFARM_TORCH_PYTHONPATH="$here${ENGINEFARM_TORCH_PYTHONPATH:+:$ENGINEFARM_TORCH_PYTHONPATH}"
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
export ENGINEFARM_GPU_MODELS="${ENGINEFARM_GPU_MODELS:-$work/models}"
export ENGINEFARM_GPU_PLANS="${ENGINEFARM_GPU_PLANS:-$work/plans}"
export ENGINEFARM_GPU_KEEP="$ENGINEFARM_GPU_PLANS"
if [ ! -e "$ENGINEFARM_GPU_MODELS/efficientnet_lite0.npz" ]; then
    LD_LIBRARY_PATH= PYTHONPATH="$ENGINEFARM_TORCH_PYTHONPATH" "$ENGINEFARM_TORCH_PYTHON" -W ignore \
        tests/gpu/make_models.py "$ENGINEFARM_GPU_MODELS" efficientnet_lite0
fi
if [ ! -e "$ENGINEFARM_GPU_PLANS/builds.json" ]; then
    "$python" tests/gpu/build_with_trt86.py "$ENGINEFARM_GPU_MODELS" "$ENGINEFARM_GPU_PLANS" \
        --once conv conv-notvc nonzero reshape other
fi
pytest() { "$python" -m pytest --confcutdir=tests/gpu -p no:cacheprovider -m gpu -rA --tb=short "$@"; }
if [ $# -gt 0 ]; then
    pytest "$@"
else
    pytest tests/gpu/test_flow.py tests/gpu
    if [ -n "${ENGINEFARM_ORT_PYTHONPATH:-}" ]; then
        PYTHONPATH="$ENGINEFARM_ORT_PYTHONPATH:$PYTHONPATH"
        pytest tests/gpu/test_ort_trt.py
    fi
fi
