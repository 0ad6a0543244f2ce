#!/bin/bash
# oneDNN's convolutions and products, which f32 uses with AVX-512 and without AVX2 but not on a machine between: told to leave out AVX2, oneDNN does the same ops within the same limits, with the same bits for every number of threads.
. "$(dirname "$0")/../lib.sh"
# And our own products and loops for AVX2, on a machine with AVX-512, where others take their place.
export KD_OPS=conv2d,linear,attention ONEDNN_MAX_CPU_ISA=AVX
ops() { timeout 600 "$KD_TEST_DIR/ops/$1" >"$work/out" 2>"$work/err"; }
check "oneDNN without AVX2 stays within the limits" ops test_ops_cpu
check "it was oneDNN without AVX2" grep -q "oneDNN.*no AVX2" "$work/out" "$work/err"
check "and has the same bits for every number of threads" ops test_ops_threads
export KD_OPS=conv2d,linear,attention,batch_norm,layer_norm,max_pool,gelu ONEDNN_MAX_CPU_ISA=AVX2
check "with AVX2 at most it stays within the limits" ops test_ops_cpu
check "it was AVX2" grep -q "oneDNN.*, AVX2" "$work/out" "$work/err"
check "and with AVX2 has the same bits for every number of threads" ops test_ops_threads
finish
