#!/usr/bin/env bash
# Runs the CUDA suite, the benchmarks and a short training on this machine's GPU.
#
#   ./run.sh [--torch PYTHON] [TEXT_FILE] [ARGUMENTS of `moe-train train`]
#   ./run.sh --study DATA
#
# The second form makes what is left of the study of Default MoE on DATA, a folder with train/ and valid/, and nothing else.
# PYTHON has torch and transformers; PyTorch then takes turns in every benchmark.
#
# Results go to $OUT (default: results beside this script): suite.log, bench.log, train.log, the records of the benchmarks
# (records/*.json, each with the machine, its GPU and the commit) and the files of the run.
# CUDA_PATH (its include folder is read when kernels are compiled) and LD_LIBRARY_PATH are looked for when unset.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${OUT:-$here/results}
text=$here/text.txt
torch=()
study=
if [ "${1:-}" = --study ]; then
    if [ $# -ne 2 ]; then
        echo "--study needs the data, and nothing else" >&2
        exit 2
    fi
    study=$2
fi
if [ "${1:-}" = --torch ]; then
    if [ $# -lt 2 ]; then
        echo "--torch needs a Python" >&2
        exit 2
    fi
    torch=(--torch "$2")
    shift 2
fi
if [ $# -gt 0 ]; then
    text=$1
    shift
fi
mkdir -p "$out/records" || exit 1

absolute() { case $1 in /*) printf %s "$1" ;; *) printf %s "$PWD/$1" ;; esac }
text=$(absolute "$text")
[ -z "$study" ] || study=$(absolute "$study")
out=$(absolute "$out")

# From here on kernels that one program compiled serve the next: CubeCL reads this file where a program starts. Not for the suite, whose
# hundreds of kernels would make each new one slow to add.
keep_kernels() {
    printf '[compilation]\ncache = "local"\n' >"$out/cubecl.toml" && cd "$out" || exit 1
}

if [ -z "${CUDA_PATH:-}" ]; then
    compiler=$(command -v nvcc || true)
    for folder in ${compiler:+"$(dirname "$(dirname "$(readlink -f "$compiler")")")"} \
        /usr/local/cuda /usr/local/cuda-* /opt/cuda /usr/lib/cuda /usr; do
        if [ -f "$folder/include/cuda_runtime.h" ]; then
            export CUDA_PATH=$folder
            break
        fi
    done
fi

if [ -z "${LD_LIBRARY_PATH:-}" ]; then
    libraries=
    for folder in ${CUDA_PATH:+"$CUDA_PATH/lib64"} ${CUDA_PATH:+"$CUDA_PATH/lib"} \
        /usr/local/nvidia/lib64 /usr/local/nvidia/lib /usr/lib/x86_64-linux-gnu /usr/lib64; do
        for library in "$folder"/libnvrtc.so* "$folder"/libcuda.so*; do
            if [ -e "$library" ]; then
                libraries=${libraries:+$libraries:}$folder
                break
            fi
        done
    done
    export LD_LIBRARY_PATH=$libraries
fi

echo "CUDA_PATH=${CUDA_PATH:-not found}"
echo "LD_LIBRARY_PATH=$LD_LIBRARY_PATH"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null | tee "$out/gpu.txt"

if [ -n "$study" ]; then
    keep_kernels
    # A kernel takes seconds to compile, and to try out many of them longer than a run.
    export CUBECL_AUTOTUNE_LEVEL=${CUBECL_AUTOTUNE_LEVEL:-minimal}
    exec "$here/bin/xtask" reproduce default-moe --scale gpu --data "$study" --program "$here/bin/moe-train" \
        --out "$out/default-moe" --runs "$out/default-moe/runs"
fi

failed=0
: >"$out/suite.log"
# Every test in a process of its own, one a processor: a process compiles its kernels one after the other, each in seconds.
for suite in "$here"/bin/suite-*; do
    echo "== $(basename "$suite")" | tee -a "$out/suite.log"
    logs=$(mktemp -d) || exit 1
    "$suite" --list --format terse 2>/dev/null | sed -n 's/: test$//p' |
        CUBECL_AUTOTUNE_LEVEL=${CUBECL_AUTOTUNE_LEVEL:-minimal} xargs -P "$(nproc)" -I {} \
            sh -c '"$1" --exact "$2" >"$3/$$" 2>&1 || { echo "failed: $2"; exit 1; }' sh "$suite" {} "$logs" || failed=1
    find "$logs" -type f -exec cat {} + | tee -a "$out/suite.log" | awk '/^test result:/ { passed += $4; failed += $6 }
        END { printf "%d passed, %d failed\n", passed, failed }'
    rm -r "$logs"
done

# bench NAME ARGUMENTS..: measures, and writes records/NAME.json.
bench() {
    local name=$1
    shift
    echo "== benchmark $name" | tee -a "$out/bench.log"
    "$here/bin/moe-bench" "$@" --json "$out/records/$name.json" 2>&1 | tee -a "$out/bench.log" || failed=1
}
# The same, with PyTorch taking turns if there is one.
contest() {
    bench "$@" ${torch[@]+"${torch[@]}"}
}
: >"$out/bench.log"
keep_kernels
contest grouped-bf16 grouped --rounds 7
contest layer-bf16 layer --gpu-shapes --dtype bf16
contest layer-f32 layer --gpu-shapes --dtype f32
contest layer-bf16-skewed layer --gpu-shapes --dtype bf16 --skew 1
contest step step

echo "== training" | tee "$out/train.log"
"$here/bin/moe-train" train --data "$text" --out "$out/run-$(date +%Y%m%d-%H%M%S)" "$@" 2>&1 | tee -a "$out/train.log" || failed=1

if [ "$failed" -eq 0 ]; then echo "all passed"; else echo "something failed: see $out"; fi
exit "$failed"
