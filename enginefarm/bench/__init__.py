"""Benchmarks: an engine, a recipe's runtimes side by side, and a server under load.

engine.py       one engine at every shape, and the loop over several contenders
recipe.py       the graphs, inputs, shapes and rows of a whole recipe
on_cpu.py       a recipe on the CPU; on_gpu.py: on the GPU
queued.py       an engine as trtexec measures it; layer_times.py: its layers
load.py         the highest rate of requests that keeps a limit of p99
harness.py      settings, the interleaved loop over contenders, and the figures of its samples
gpu_state.py    clocks, power, temperature and throttling while measuring (NVML)
shapes.py       which shapes are measured, and inputs of those shapes
"""
