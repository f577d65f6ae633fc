#!/bin/sh
# Undoes pack.sh on a machine with a GPU and no network: unpack.sh PARTS SCRATCH
#   PARTS/SET.part.??   the parts of the packed tars, carried in as many calls as it takes
# Python 3.11 and the farm go to where they were built; /opt/ort, /opt/trt10, /opt/trtexec86,
# /opt/site312, /opt/zoo and /opt/cuda11 beside them. Prints the Python that runs tests/gpu.
set -eu
parts=$1 scratch=$2
checkout=$(cd "$(dirname "$0")/../.." && pwd)
home=/root/.pyenv/versions/3.11.7
site=$home/lib/python3.11/site-packages
mkdir -p "$scratch" /opt/cuda11 /opt/trt10/lib
for set_ in base ort tensorrt10 zoo; do
    ls "$parts/$set_".part.* >/dev/null 2>&1 || continue
    mkdir -p "$scratch/$set_"
    cat "$parts/$set_".part.* | tar xf - -C "$scratch/$set_"
done
unzstd() { LD_LIBRARY_PATH="$scratch/base" "$scratch/base/zstd" -q -dc --long=31 "$1"; }
for root in "$scratch"/*/root.zst; do unzstd "$root" | tar xf - -C / --no-same-owner; done
for packed in "$scratch"/*/*.so*.zst; do
    name=$(basename "$packed" .zst)
    case $name in
        lib*.so.10.* | lib*nv*.so.10) into=/opt/trt10/lib ;;
        libnv*) into=$site/tensorrt_libs ;;
        libonnxruntime*) into=/opt/ort/onnxruntime/capi ;;
        *) into=/opt/cuda11 ;;
    esac
    unzstd "$packed" >"$into/$name" &
done
wait
rm -rf "$scratch"
printf '%s\n' "$checkout" "$checkout/tests/gpu" "$checkout/tests/gpu/site" >"$site/enginefarm.pth"
for library in /opt/syslibs/*; do
    name=$(basename "$library")
    ldconfig -p | grep -q "$name " || cp "$library" /usr/local/lib/
done
# ONNX Runtime's providers name TensorRT and CUDA 11 by their sonames alone.
printf '%s\n' "$site/tensorrt_libs" /opt/cuda11 >/etc/ld.so.conf.d/enginefarm.conf
ldconfig
echo "$home/bin/python3.11"
