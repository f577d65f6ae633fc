#!/bin/sh
# The tests on a machine with a GPU: CUDA, PyTorch, no network.
#   tests/gpu/run.sh WORK_FOLDER [TEST_FILE …]
#   tests/gpu/run.sh --prove WORK_FOLDER [TEST_FILE …]
#
# --prove: then prove.py too, whatever the tests said: a page docs/measurements/proof-GPU-RELEASE.md
# and a row of enginefarm/documents/support.toml.
#
# PYTHON                    has the farm, pycuda and TensorRT 8.6 (default python3)
# ENGINEFARM_TORCH_PYTHON   has PyTorch (default $PYTHON), with ENGINEFARM_TORCH_PYTHONPATH
# ENGINEFARM_ORT_PYTHONPATH where onnxruntime-gpu with its TensorRT is; unset: no test_ort_trt.py
# ENGINEFARM_GPU_LABEL      the label of the GPU at hand (default h100)
# CUDA_VISIBLE_DEVICES      the GPUs to use (default all): a file of tests, or a precision, has one
#                           to itself, and as many run at once as there are GPUs
#
# test_flow.py goes first: the engines that the farm builds are the plans of the last tests.
set -eu
cd "$(dirname "$0")/../.."
prove=""
[ "${1:-}" != --prove ] || { prove=yes && shift; }
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
if [ -z "${CUDA_VISIBLE_DEVICES:-}" ]; then
    CUDA_VISIBLE_DEVICES=$("$python" -c '
import pynvml
pynvml.nvmlInit()
print(*range(pynvml.nvmlDeviceGetCount()), sep=",")')
fi
export CUDA_VISIBLE_DEVICES
at_once=""
case $CUDA_VISIBLE_DEVICES in
    *,*) at_once="-n $(echo "$CUDA_VISIBLE_DEVICES" | tr ',' '\n' | wc -l)" ;;
esac
[ -z "$at_once" ] || at_once="$at_once --dist loadfile --no-loadscope-reorder"
if [ ! -e "$ENGINEFARM_GPU_MODELS/efficientnet_lite0.npz" ]; then
    LD_LIBRARY_PATH= PYTHONPATH="$ENGINEFARM_TORCH_PYTHONPATH" "$ENGINEFARM_TORCH_PYTHON" -W ignore \
        tests/gpu/make_models.py "$ENGINEFARM_GPU_MODELS" efficientnet_lite0
fi
# The plans of most tests are 8.6's; what needs none of them is what proves a TensorRT 10 or 11.
release=$("$python" -c '
try:
    import tensorrt as trt
except ImportError:
    import tensorrt_bindings as trt
print(trt.__version__.partition(".")[0])')
if [ "$release" -lt 10 ] && [ ! -e "$ENGINEFARM_GPU_PLANS/builds.json" ]; then
    "$python" tests/gpu/build_with_trt86.py "$ENGINEFARM_GPU_MODELS" "$ENGINEFARM_GPU_PLANS" \
        --once conv conv-notvc nonzero reshape other
fi
status=0
rm -f "$work"/junit-*.xml
pytest() {
    name=$1
    shift
    # shellcheck disable=SC2086 # one word an option
    "$python" -m pytest --confcutdir=tests/gpu -p no:cacheprovider -m gpu -rA --tb=short \
        --durations=15 $at_once --junitxml "$work/junit-$name.xml" "$@" || status=$?
}
if [ $# -gt 0 ]; then
    pytest chosen "$@"
elif [ "$release" -ge 10 ]; then
    pytest all tests/gpu/test_flow.py tests/gpu/test_side_by_side.py tests/gpu/test_tensorrt10.py \
        tests/gpu/test_which_gpu.py
else
    # Each file by its name: pytest takes FILE FOLDER for FOLDER alone, in the folder's order. The
    # long ones start first; the last three run the plans that test_flow.py left.
    others=$(printf '%s\n' tests/gpu/test_*.py |
        grep -vE '_(flow|native_build|refit|benchmark|device_verify|timing)\.py')
    # shellcheck disable=SC2086 # one word a file
    pytest all tests/gpu/test_flow.py tests/gpu/test_native_build.py tests/gpu/test_refit.py $others
    pytest last tests/gpu/test_benchmark.py tests/gpu/test_device_verify.py tests/gpu/test_timing.py
    if [ -n "${ENGINEFARM_ORT_PYTHONPATH:-}" ]; then
        without=$PYTHONPATH
        PYTHONPATH="$ENGINEFARM_ORT_PYTHONPATH:$PYTHONPATH"
        pytest ort tests/gpu/test_ort_trt.py
        PYTHONPATH=$without  # prove.py's reference is of the farm's own ONNX Runtime
    fi
fi
[ -z "$prove" ] || "$python" tests/gpu/prove.py "$work" || status=$?
exit "$status"
